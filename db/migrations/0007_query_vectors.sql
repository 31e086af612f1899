-- What embeds a query inside SQL: vectors of words, and exact embeddings of queries seen before.

alter table rag.tenants
add column query_cache_size int not null default 1000,
add column query_cache_lifetime interval not null default '30 days',
add constraint query_cache_size_is_sane check (query_cache_size between 0 and 1000000),
add constraint query_cache_lifetime_is_positive check (query_cache_lifetime > interval '0');

comment on column rag.tenants.query_cache_size is
    'How many exact embeddings of the tenant''s queries are kept; 0: none, nor is any asked for.';
comment on column rag.tenants.query_cache_lifetime is
    'How long the exact embedding of a query is kept.';

-- A set is learned beside the one in use and takes its place in one step.
create table rag.word_vector_sets (
    set_id int generated always as identity primary key,
    model_id int not null references rag.models (model_id) on delete cascade,
    recipe text not null,
    words int not null default 0,
    progress real not null default 0,
    is_current boolean not null default false,
    worker text,
    due_at timestamptz not null,
    created_at timestamptz not null default now(),
    completed_at timestamptz,
    constraint word_vector_progress_is_a_share check (progress between 0 and 1)
);

create index word_vector_sets_model_id_idx on rag.word_vector_sets (model_id);
create unique index word_vector_sets_one_is_current on rag.word_vector_sets (model_id)
where is_current;
create unique index word_vector_sets_one_is_learned on rag.word_vector_sets (model_id)
where not is_current;

comment on table rag.word_vector_sets is
    'Word vectors by model: the set in use, and the one that a worker is learning.';
comment on column rag.word_vector_sets.recipe is
    'What the set is made by: another recipe, or another revision of the model, makes it stale.';
comment on column rag.word_vector_sets.due_at is
    'Until then its worker is learning it; later another may begin anew.';

-- Words of public vocabularies only, so the table is no tenant's and says nothing of any.
create table rag.word_vectors (
    set_id int not null references rag.word_vector_sets (set_id) on delete cascade,
    word text collate "C" not null,
    embedding halfvec not null,
    primary key (set_id, word)
) with (toast_tuple_target = 8160);

comment on table rag.word_vectors is
    'What a word, or a piece of one (##ing), adds to the embedding of a query.';

create table rag.query_embeddings (
    tenant_id int not null references rag.tenants (tenant_id) on delete cascade,
    model_id int not null references rag.models (model_id) on delete cascade,
    query_hash uuid not null,
    embedding halfvec not null,
    created_at timestamptz not null default clock_timestamp(),
    expires_at timestamptz not null,
    primary key (tenant_id, model_id, query_hash)
) with (toast_tuple_target = 8160);

create index query_embeddings_model_id_idx on rag.query_embeddings (model_id);
create index query_embeddings_created_at_idx on rag.query_embeddings (tenant_id, created_at);
create index query_embeddings_expires_at_idx on rag.query_embeddings (expires_at);

comment on table rag.query_embeddings is
    'Exact embeddings of queries seen before, each tenant''s own.';
comment on column rag.query_embeddings.query_hash is 'Of the query''s text, which is not kept.';

-- A hint and nothing more, so it is not logged: a search that notes its query does not wait for
-- the disk when it commits. No key is unique but the generated one: of two searches for the same
-- at the same time one would wait for the other's transaction to end. No foreign keys: their
-- check locks a row, and that is logged.
create unlogged table rag.queries (
    tenant_id int not null,
    query_id uuid not null default gen_random_uuid(),
    model_id int not null,
    query_hash uuid not null,
    query text not null,
    due_at timestamptz not null default clock_timestamp(),
    attempts smallint not null default 0,
    lease_token uuid,
    worker text,
    created_at timestamptz not null default clock_timestamp(),
    primary key (tenant_id, query_id)
) with (
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_cost_delay = 0
);

create index queries_due_idx on rag.queries (model_id, due_at);
create index queries_query_hash_idx on rag.queries (tenant_id, model_id, query_hash);
create index queries_lease_idx on rag.queries (lease_token) where lease_token is not null;

comment on table rag.queries is
    'Queries that wait for their exact embedding; their text goes when it is there.';
comment on column rag.queries.due_at is 'Not before this time: the end of a lease.';

-- Returns one column more from now on, which no "or replace" can do.
drop function if exists rag._candidates(
    text, int, text, jsonb, vector, text, real, real, text
);
