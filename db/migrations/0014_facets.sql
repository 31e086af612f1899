-- Facets: the lexical index knows the values of the metadata, so that a filter is part of the
-- search for words and not a second one.
--
-- Takes rag.lexemes exclusively while its GIN index is built anew: a minute for a million chunks.
-- Facets of chunks that are there come with rag.reindex (rag.status() tells); until a tenant's are
-- complete his searches go without.

alter table rag.lexemes
add column facets int[] not null default '{}';

comment on column rag.lexemes.facets is
    'Numbers of tenant, collection and values of the metadata, by which filters narrow down.';

drop index rag.lexemes_lexemes_idx;
create index lexemes_lexemes_idx on rag.lexemes using gin (lexemes, facets)
with (fastupdate = off);

-- What it served is found by facets.
drop index rag.chunks_metadata_idx;

update rag.collections as n
set index_version = n.index_version + 1, reindexed_to = 0
where exists (
    select
    from (select distinct l.tenant_id, l.collection_id from rag.lexemes as l) as i
    where i.tenant_id = n.tenant_id and i.collection_id = n.collection_id
);

-- Its result has another type now, which no "create or replace" can change.
drop function if exists rag._create_child(text, regclass, int, boolean, regclass);
