-- Posting lists hold two chunks in each dimension of a vector, and facets have lists, too. Those
-- that are there are dropped: searches do without until the next maintenance has made new ones.
--
-- Locks rag.tenants exclusively for a moment.

truncate rag.posting_sets, rag.postings, rag.posting_places, rag.posting_changes;

alter table rag.posting_sets
add column max_weight real not null default 0;

comment on column rag.posting_sets.max_weight is
    'The greatest BM25 weight in the lists so far, which tells how much their sums can be.';
comment on column rag.posting_sets.dimensions is
    'The lexemes and the facets that have lists, by dimension.';
comment on column rag.posting_sets.idfs is
    'What weights are multiplied with in the lists; of a facet the share of chunks that have it.';

update rag.tenants as t
set posting_generation = null, has_posting_changes = false
where t.posting_generation is not null or t.has_posting_changes;
