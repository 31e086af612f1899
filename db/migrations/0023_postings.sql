-- Posting lists: of each common lexeme of a big tenant, the chunks that have it and what it weighs
-- there, as vectors that pgvector adds up. What GIN takes longer for the more words a question has,
-- they answer in a time that depends on the number of words alone.
--
-- Locks rag.tenants exclusively for a moment. Lists are made by the next maintenance; until then
-- searches do what they did before.

create table rag.posting_sets (
    tenant_id int not null,
    generation int not null,
    dimensions int[] not null,
    idfs real[] not null,
    blocks int not null default 0,
    places int not null default 0,
    is_ready boolean not null default false,
    is_building boolean not null default true,
    waits_for xid8,
    last_change bigint not null default 0,
    last_chunk bigint not null default 0,
    primary key (tenant_id, generation)
);

comment on table rag.posting_sets is
    'Sets of posting lists: at most one that serves a tenant, and one that is being made.';
comment on column rag.posting_sets.dimensions is 'The lexemes that have lists, by dimension.';
comment on column rag.posting_sets.idfs is 'What their weights are multiplied with in the lists.';
comment on column rag.posting_sets.places is
    'Chunks in all blocks, gone and changed ones included.';
comment on column rag.posting_sets.waits_for is
    'Transactions up to this one have to end before chunks are read; null: not known yet.';
comment on column rag.posting_sets.last_change is
    'Changes up to this one are known to what is being built.';
comment on column rag.posting_sets.last_chunk is 'Chunks up to this one are built.';

create table rag.postings (
    tenant_id int not null,
    generation int not null,
    dimension int not null,
    block int not null,
    idf real not null,
    weights sparsevec not null,
    primary key (tenant_id, generation, dimension, block)
);

-- Not compressed: every search reads them.
alter table rag.postings alter column weights set storage external;

comment on table rag.postings is
    'Of a lexeme, by dimension, its part of the score of each chunk in a block of 16,000.';
comment on column rag.postings.idf is 'What the stored BM25 weights are multiplied with here.';

create table rag.posting_places (
    tenant_id int not null,
    generation int not null,
    block int not null,
    part int not null,
    chunk_ids bigint[] not null,
    primary key (tenant_id, generation, block, part)
);

alter table rag.posting_places alter column chunk_ids set storage plain;

comment on table rag.posting_places is 'Which chunk a place in a block is, 500 of them a row.';

create table rag.posting_changes (
    tenant_id int not null,
    change_id bigint generated always as identity,
    chunk_id bigint not null,
    primary key (tenant_id, change_id)
);

comment on table rag.posting_changes is
    'Chunks that were indexed after a tenant''s posting lists were made. Searches look at each.';

alter table rag.tenants
add column posting_generation int,
add column has_posting_changes boolean not null default false;

comment on column rag.tenants.posting_generation is
    'The set of posting lists that searches use; null: none.';
comment on column rag.tenants.has_posting_changes is
    'Whether chunks that are indexed are noted in rag.posting_changes.';
