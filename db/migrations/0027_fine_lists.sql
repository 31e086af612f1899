-- Posting lists of common lexemes come in finer quanta, too, and those of facets have other
-- numbers. Lists that are there are dropped: searches do without until the next maintenance has
-- made new ones.

truncate rag.posting_sets, rag.postings;

update rag.tenants as t
set posting_generation = null, has_posting_changes = false
where t.posting_generation is not null or t.has_posting_changes;

-- It tells what fine lists add up to, too: another type of result, which no "or replace" can give.
drop function if exists rag._posting_lists(int, int, int[], double precision[], text[]);
