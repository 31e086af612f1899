-- The queue: one job is one chunk that waits for one model's embedding.

-- due_at is both "not before" (backoff) and "leased until": a claim moves it into the future, so
-- an expired lease needs nobody to clean it up.
create table rag.jobs (
    job_id bigint generated always as identity unique,
    tenant_id int not null,
    chunk_id bigint not null,
    model_id int not null,
    partition_id int not null,
    content_hash uuid not null,
    priority smallint not null default 0,
    attempts smallint not null default 0,
    due_at timestamptz not null default now(),
    lease_token uuid,
    worker text,
    error text,
    failed_at timestamptz,
    created_at timestamptz not null default now(),
    primary key (tenant_id, chunk_id, model_id),
    constraint job_failure_has_error check (failed_at is null or error is not null)
) with (
    fillfactor = 70,
    -- A queue is all churn: the default of 20 % dead rows lets claims slow down 100 times.
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_cost_delay = 0
);

create index jobs_due_idx on rag.jobs (model_id, tenant_id, priority, due_at)
where failed_at is null;
create index jobs_next_due_idx on rag.jobs (due_at) where failed_at is null;
create index jobs_lease_idx on rag.jobs (lease_token) where lease_token is not null;
create index jobs_failed_idx on rag.jobs (tenant_id, failed_at) where failed_at is not null;

comment on table rag.jobs is 'Chunks that wait for an embedding; a row with failed_at is parked.';
comment on column rag.jobs.content_hash is 'The text the job was made for; a later text fences it.';
comment on column rag.jobs.due_at is 'Not before this time: backoff, or the end of a lease.';
comment on column rag.jobs.lease_token is 'Fencing token of the claim that holds the job.';

-- What was finished of late: the rate of rag.progress(), pruned to an hour.
create table rag.completions (
    tenant_id int not null,
    completion_id bigint generated always as identity,
    model_id int not null,
    chunks int not null,
    completed_at timestamptz not null default clock_timestamp(),
    primary key (tenant_id, completion_id)
);

create index completions_completed_at_idx on rag.completions (completed_at);

comment on table rag.completions is
    'Embeddings stored during the last hour, one row a batch and tenant.';
