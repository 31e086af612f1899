-- What users put in, and the passages made of it.

create sequence rag.collection_ids as int;
create sequence rag.document_ids;
create sequence rag.chunk_ids;

create table rag.collections (
    tenant_id int not null references rag.tenants (tenant_id) on delete cascade,
    collection_id int not null default nextval('rag.collection_ids'),
    name text not null,
    strategy text not null default 'markdown',
    chunk_size int not null default 800,
    chunk_overlap int not null default 100,
    language text not null default 'english',
    k1 real not null default 1.2,
    b real not null default 0.75,
    title_weight real not null default 1,
    heading_weight real not null default 1,
    created_at timestamptz not null default now(),
    primary key (tenant_id, collection_id),
    constraint collections_name_is_unique unique (tenant_id, name),
    constraint collection_name_is_short check (length(name) between 1 and 200),
    constraint collection_name_is_trimmed check (name = btrim(name)),
    constraint collection_bm25_is_sane check (k1 between 0.1 and 10 and b between 0 and 1),
    constraint collection_weights_are_sane
    check (title_weight between 0 and 100 and heading_weight between 0 and 100)
);

comment on table rag.collections is 'Named sets of a tenant''s documents, with their settings.';
comment on column rag.collections.k1 is 'BM25: how soon more of the same word counts no more.';
comment on column rag.collections.b is 'BM25: how much a long chunk is held against it.';
comment on column rag.collections.title_weight is 'What a word of the title counts; in the text 1.';
comment on column rag.collections.heading_weight is
    'What a word of a heading counts; in the text 1.';
comment on column rag.collections.language is
    'Text search configuration by name: a regconfig column would stop pg_upgrade.';

create table rag.documents (
    tenant_id int not null,
    document_id bigint not null default nextval('rag.document_ids'),
    collection_id int not null,
    uri text not null,
    title text,
    metadata jsonb not null default '{}',
    content text not null,
    content_hash uuid not null,
    language text not null,
    chunking jsonb not null,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (tenant_id, document_id),
    constraint documents_uri_is_unique unique (tenant_id, collection_id, uri),
    constraint documents_collection_fkey foreign key (tenant_id, collection_id)
    references rag.collections (tenant_id, collection_id) on delete cascade,
    constraint document_metadata_is_object check (jsonb_typeof(metadata) = 'object')
);

comment on table rag.documents is 'What the user put in, known by its uri inside its collection.';
comment on column rag.documents.content_hash is 'First 128 bits of the SHA-256 of content (UTF-8).';
comment on column rag.documents.chunking is 'The strategy, size and overlap that made its chunks.';

-- A document may be in another language than its collection; a query is asked in all of them.
create table rag.collection_languages (
    tenant_id int not null,
    collection_id int not null,
    language text not null,
    primary key (tenant_id, collection_id, language),
    constraint collection_languages_collection_fkey foreign key (tenant_id, collection_id)
    references rag.collections (tenant_id, collection_id) on delete cascade
);

comment on table rag.collection_languages is
    'The text search configurations that a collection''s documents were put in.';

-- Partitioned by list and without a default partition: attaching never scans, and a row that
-- names no known partition is an error. No foreign keys: a move between partitions would cascade.
create table rag.chunks (
    partition_id int not null,
    tenant_id int not null,
    chunk_id bigint not null default nextval('rag.chunk_ids'),
    document_id bigint not null,
    collection_id int not null,
    ordinal int not null,
    start_offset int not null,
    end_offset int not null,
    heading_path text[] not null default '{}',
    content text not null,
    content_hash uuid not null,
    metadata jsonb not null default '{}',
    primary key (tenant_id, chunk_id, partition_id),
    constraint chunk_ordinal_not_negative check (ordinal >= 0),
    constraint chunk_offsets_in_order check (start_offset >= 0 and end_offset > start_offset)
) partition by list (partition_id);

create index chunks_document_idx on rag.chunks (tenant_id, document_id, ordinal);
-- An embedding is reused for the same text anywhere in the tenant, found by this index.
create index chunks_content_hash_idx on rag.chunks (tenant_id, content_hash);
create index chunks_metadata_idx on rag.chunks using gin (metadata jsonb_path_ops)
with (fastupdate = off);

comment on table rag.chunks is 'Passages of documents: the unit of search.';
comment on column rag.chunks.start_offset is '0-based character offset into documents.content.';
comment on column rag.chunks.end_offset is 'The character offset just behind the passage.';
comment on column rag.chunks.heading_path is 'The headings above the passage, outermost first.';
comment on column rag.chunks.metadata is 'The document''s metadata, repeated here to be indexed.';

-- Nothing but keys, lexemes and weights: GIN's heap re-check reads narrow rows (1.4 GB against
-- 3.4 GB at 1,000,000 chunks with the text in the row, 4 times faster).
create table rag.lexemes (
    partition_id int not null,
    tenant_id int not null,
    chunk_id bigint not null,
    collection_id int not null,
    length real not null,
    lexemes tsvector not null,
    weights sparsevec not null,
    primary key (tenant_id, chunk_id, partition_id)
) partition by list (partition_id);

-- Not compressed: every score reads them.
alter table rag.lexemes
alter column lexemes set storage external,
alter column weights set storage external;

-- fastupdate off: a pending list makes searches 100 times slower after a bulk load.
create index lexemes_lexemes_idx on rag.lexemes using gin (lexemes) with (fastupdate = off);

comment on table rag.lexemes is 'What the lexical leg searches: one row for each chunk.';
comment on column rag.lexemes.length is 'Occurrences of lexemes in the chunk, as BM25 counts them.';
comment on column rag.lexemes.weights is
    'BM25 term weights at the tenant''s reference length; the dimension is a hash of the lexeme.';

-- First by model, then by place: a model is dropped by dropping its tables, and two models
-- never share an index.
create table rag.embeddings (
    partition_id int not null,
    tenant_id int not null,
    chunk_id bigint not null,
    model_id int not null,
    collection_id int not null,
    embedding halfvec not null,
    primary key (tenant_id, chunk_id, model_id, partition_id)
) partition by list (model_id);

comment on table rag.embeddings is 'What the semantic leg searches: one vector a chunk and model.';
