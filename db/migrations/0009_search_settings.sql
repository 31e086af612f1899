-- What a collection's search goes by: metadata that is searchable with the text, and the weights of
-- the legs. Both tables are altered without being rewritten (constant defaults): the locks on them
-- last as long as it takes to get them.

alter table rag.collections
add column enrich text[] not null default '{}',
add column enrich_weight real not null default 1,
add column lexical_weight real not null default 0.5,
add column fusion text not null default 'standard',
add column index_version int not null default 1,
add column reindexed_to bigint,
add constraint collection_enrich_weight_is_sane check (enrich_weight between 0 and 100),
add constraint collection_lexical_weight_is_sane check (lexical_weight between 0 and 1),
add constraint collection_fusion_is_known check (fusion in ('standard', 'linear', 'rrf'));

comment on column rag.collections.enrich is
    'Keys of the metadata whose values are searched with the text; $file_name: that of the uri.';
comment on column rag.collections.enrich_weight is 'What a word of them counts; in the text 1.';
comment on column rag.collections.lexical_weight is
    'The weight of the lexical leg in a search of this collection that says nothing of it.';
comment on column rag.collections.fusion is
    'The fusion of a search of this collection that says nothing of it.';
comment on column rag.collections.index_version is
    'Counts the changes of settings that the stored BM25 weights depend on.';
comment on column rag.collections.reindexed_to is
    'While chunks are indexed anew after such a change: up to this one it is done; null: all are.';

-- Of each row, because for a while a collection has rows of both, old settings and new.
alter table rag.lexemes
add column k1 real not null default 1.2,
add column b real not null default 0.75,
add column index_version int not null default 1;

comment on column rag.lexemes.k1 is 'The k1 that the weights were made with.';
comment on column rag.lexemes.b is 'The b that the weights were made with.';
comment on column rag.lexemes.index_version is
    'The version of the collection''s settings that the row was made with.';

update rag.lexemes as l
set k1 = n.k1, b = n.b
from rag.collections as n
where
    n.tenant_id = l.tenant_id
    and n.collection_id = l.collection_id
    and (n.k1 <> l.k1 or n.b <> l.b);

-- They have more parameters from now on.
drop function if exists rag.create_collection(text, text, int, int, text);
drop function if exists rag.search(text, int, text, jsonb, vector, text, real, real, text);
drop function if exists rag._candidates(text, int, text, jsonb, vector, text, real, real, text);
