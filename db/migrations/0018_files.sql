-- Files that wait to be read, and runs: what a sync or a migration did, and what it brought.
--
-- Three new tables; locks nothing that is there.

create sequence rag.upload_ids;
create sequence rag.run_ids;

create table rag.uploads (
    tenant_id int not null,
    upload_id bigint not null default nextval('rag.upload_ids'),
    collection_id int not null,
    uri text not null,
    filename text not null,
    metadata jsonb not null default '{}',
    language text,
    bytes int not null,
    body bytea,
    state text not null default 'pending',
    attempts smallint not null default 0,
    due_at timestamptz not null default now(),
    lease_token uuid,
    worker text,
    error text,
    document_id bigint,
    created_at timestamptz not null default now(),
    finished_at timestamptz,
    primary key (tenant_id, upload_id),
    constraint uploads_collection_fkey foreign key (tenant_id, collection_id)
    references rag.collections (tenant_id, collection_id) on delete cascade,
    constraint upload_state_is_known
    check (state in ('pending', 'processing', 'completed', 'replaced', 'failed')),
    constraint upload_failure_has_error check (state <> 'failed' or error is not null),
    constraint upload_has_body
    check (state in ('completed', 'replaced') or body is not null)
) with (autovacuum_vacuum_scale_factor = 0.05);

-- Compressed already, as most files are.
alter table rag.uploads alter column body set storage external;

create index uploads_collection_idx on rag.uploads (tenant_id, collection_id, uri);
create index uploads_due_idx on rag.uploads (tenant_id, due_at)
where state in ('pending', 'processing');
create index uploads_lease_idx on rag.uploads (lease_token) where lease_token is not null;

comment on table rag.uploads is
    'Files that were handed over by rag.upload, and what became of them.';
comment on column rag.uploads.body is 'The file, until it is completed or replaced.';
comment on column rag.uploads.due_at is 'Not before this time: backoff, or the end of a lease.';
comment on column rag.uploads.lease_token is 'Fencing token of the worker that reads it.';
comment on column rag.uploads.document_id is 'What it became.';

create table rag.runs (
    tenant_id int not null,
    run_id bigint not null default nextval('rag.run_ids'),
    kind text not null,
    source text not null,
    details jsonb not null default '{}',
    state text not null default 'running',
    report jsonb not null default '{}',
    started_at timestamptz not null default clock_timestamp(),
    finished_at timestamptz,
    primary key (tenant_id, run_id),
    constraint runs_tenant_fkey foreign key (tenant_id)
    references rag.tenants (tenant_id) on delete cascade,
    constraint run_kind_is_short check (length(kind) between 1 and 100),
    constraint run_state_is_known
    check (state in ('running', 'completed', 'interrupted', 'failed', 'rolled back'))
);

comment on table rag.runs is 'What a sync or a migration did: one row a run.';
comment on column rag.runs.source is 'Where its documents are from: folders, or another database.';
comment on column rag.runs.details is 'With what settings, so that the same run can be resumed.';
comment on column rag.runs.report is 'What came of it, in numbers, and what was left out and why.';

-- By uri: what was deleted is told, too.
create table rag.run_documents (
    tenant_id int not null,
    run_id bigint not null,
    collection_id int not null,
    uri text not null,
    action text not null,
    document_id bigint,
    version int,
    noted_at timestamptz not null default now(),
    primary key (tenant_id, run_id, collection_id, uri),
    constraint run_documents_run_fkey foreign key (tenant_id, run_id)
    references rag.runs (tenant_id, run_id) on delete cascade,
    constraint run_documents_collection_fkey foreign key (tenant_id, collection_id)
    references rag.collections (tenant_id, collection_id) on delete cascade,
    constraint run_action_is_known check (action in ('inserted', 'updated', 'deleted'))
);

create index run_documents_collection_idx on rag.run_documents (tenant_id, collection_id);

comment on table rag.run_documents is 'The documents that a run inserted, updated or deleted.';
comment on column rag.run_documents.version is
    'That which the run put, of document_id; another one is not the run''s.';

create type rag.similar_passage as (
    rank int,
    chunk_id bigint,
    document_id bigint,
    uri text,
    title text,
    content text,
    metadata jsonb,
    similarity double precision,
    collection_name text
);

comment on type rag.similar_passage is 'A row of rag.find_similar.';
