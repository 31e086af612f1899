-- The semantic leg: how many candidates a scan of the HNSW index keeps.

begin;

select plan(6);

select is(rag._ef_search(t.chunks), t.candidates, format('of %s chunks', t.chunks))
from (
    values
    (null::double precision, 200), (0, 200), (300000, 200), (1000000, 299), (10000000, 644),
    (100000000, 1000)
) as t (chunks, candidates);

select * from finish();
rollback;
