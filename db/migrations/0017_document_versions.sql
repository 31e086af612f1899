-- The life of a document: past versions that can be searched, read and restored, expiry, deletion
-- that can be undone; and more ways to cut texts.
--
-- What is past lies in tables of its own, so that a search of the present reads none of it. Adds
-- columns with constant defaults to rag.collections and rag.documents (locked for a moment, nothing
-- is rewritten) and builds two indexes on rag.documents, which takes some seconds for a million
-- documents and keeps writers waiting so long.

alter table rag.collections
add column min_chunk_size int not null default 0,
add column separators text[],
add column versions int not null default 1,
add column lifetime interval,
add column keep_deleted interval,
add constraint collection_versions_are_sane check (versions between 1 and 1000),
add constraint collection_lifetime_is_positive check (lifetime > interval '0'),
add constraint collection_keep_deleted_is_positive check (keep_deleted > interval '0');

comment on column rag.collections.min_chunk_size is
    'Smaller chunks are merged with a neighbour; 0: none are.';
comment on column rag.collections.separators is
    'Where texts are cut, what parts most first; null: at paragraphs, lines, sentences, words.';
comment on column rag.collections.versions is
    'How many versions of a document are kept, with the current one.';
comment on column rag.collections.lifetime is
    'How long after it was put a document that says nothing of it is found; null: for ever.';
comment on column rag.collections.keep_deleted is
    'How long a deleted document can be restored; null: not at all, it is erased at once.';

alter table rag.documents
add column version int not null default 1,
add column expires_at timestamptz;

create index documents_expires_at_idx on rag.documents (tenant_id, expires_at)
where expires_at is not null;
create index documents_metadata_idx on rag.documents using gin (metadata jsonb_path_ops)
with (fastupdate = off);

comment on column rag.documents.version is 'Counts what was put under this uri, from 1.';
comment on column rag.documents.expires_at is 'From then on it is not found, and may be purged.';
comment on column rag.documents.updated_at is 'Since when this version is the current one.';

create table rag.past_documents (
    tenant_id int not null,
    document_id bigint not null,
    version int not null,
    collection_id int not null,
    uri text not null,
    title text,
    metadata jsonb not null,
    content text not null,
    content_hash uuid not null,
    language text not null,
    chunking jsonb not null,
    created_at timestamptz not null,
    valid_from timestamptz not null,
    valid_to timestamptz not null,
    expires_at timestamptz,
    is_deleted boolean not null default false,
    purge_at timestamptz,
    primary key (tenant_id, document_id, version),
    constraint past_documents_collection_fkey foreign key (tenant_id, collection_id)
    references rag.collections (tenant_id, collection_id) on delete cascade
);

create index past_documents_uri_idx on rag.past_documents (tenant_id, collection_id, uri, version);
create index past_documents_valid_to_idx on rag.past_documents (tenant_id, valid_to);
create index past_documents_purge_at_idx on rag.past_documents (tenant_id, purge_at)
where purge_at is not null;

comment on table rag.past_documents is
    'Versions of documents that are no longer the current one, and documents that were deleted.';
comment on column rag.past_documents.is_deleted is
    'It was the current version when its document was deleted.';
comment on column rag.past_documents.purge_at is
    'When it is erased for good: set for all versions of a document that was deleted.';

-- The text is that of the document, by the offsets; a chunk whose text came through a change has
-- the same id in both versions.
create table rag.past_chunks (
    tenant_id int not null,
    document_id bigint not null,
    version int not null,
    ordinal int not null,
    chunk_id bigint not null,
    start_offset int not null,
    end_offset int not null,
    heading_path text[] not null,
    content_hash uuid not null,
    length real not null,
    reference_length real not null,
    k1 real not null,
    b real not null,
    lexemes tsvector not null,
    weights sparsevec not null,
    primary key (tenant_id, document_id, version, ordinal),
    constraint past_chunks_document_fkey foreign key (tenant_id, document_id, version)
    references rag.past_documents (tenant_id, document_id, version)
    on update cascade on delete cascade
);

comment on column rag.past_chunks.reference_length is
    'The tenant''s reference length that the weights were made with.';

create index past_chunks_chunk_id_idx on rag.past_chunks (tenant_id, chunk_id);
create index past_chunks_content_hash_idx on rag.past_chunks (tenant_id, content_hash);

comment on table rag.past_chunks is
    'The chunks of past versions, as they were indexed when the version ended.';

-- By text and not by chunk, so that ten versions that share a paragraph keep its vector once.
create table rag.past_embeddings (
    tenant_id int not null,
    content_hash uuid not null,
    model_id int not null references rag.models (model_id) on delete cascade,
    embedding halfvec not null,
    primary key (tenant_id, content_hash, model_id)
) with (toast_tuple_target = 8160);

create index past_embeddings_model_id_idx on rag.past_embeddings (model_id);

comment on table rag.past_embeddings is 'Embeddings of the texts of past chunks.';
