-- Fusion: what the default makes of two lists, worked out from what the legs say. RRF is worked out
-- in test_55_search.sql.

begin;
select plan(16);

-- Three dimensions, so that vectors can be written by hand.
do $$
begin
    delete from rag.models;
    perform rag._create_model('tiny', 3, 'test', is_active => true);
    perform rag.create_tenant('fusion');
    perform rag.set_tenant('fusion');
end
$$;

create function pg_temp.put(uri text, content text, vector vector)
    returns void
    language plpgsql
as $$
declare
    v_document bigint := rag.put(put.content, put.uri);
begin
    insert into rag.embeddings (
        partition_id, tenant_id, chunk_id, model_id, collection_id, embedding
    )
    select c.partition_id, c.tenant_id, c.chunk_id, m.model_id, c.collection_id, put.vector::halfvec
    from rag.chunks as c
    cross join rag.models as m
    where c.document_id = v_document and m.is_active and put.vector is not null
    on conflict (tenant_id, chunk_id, model_id, partition_id)
    do update set embedding = excluded.embedding;
end
$$;

-- "like" and "unlike" are as near to [1,0,0], and hold none of the words; "like" is near the best.
do $$
begin
    perform pg_temp.put('unlike', 'cherry', '[1,-1,0]');
    perform pg_temp.put('like', 'fig', '[1,1,0]');
    perform pg_temp.put('best', 'apple apple', '[2,1,0]');
    perform pg_temp.put('words', 'apple banana cherry fig', '[0,0,1]');
end
$$;

create function pg_temp.found(
    fusion text default null,
    mode text default 'hybrid',
    lexical_weight real default null,
    query text default 'apple',
    embedding vector default '[1,0,0]'
)
    returns table (rank int, uri text, score numeric)
    language sql
as $$
    select s.rank, s.uri, round(s.score::numeric, 4)
    from rag.search(
        found.query, embedding => found.embedding, mode => found.mode, fusion => found.fusion,
        lexical_weight => found.lexical_weight
    ) as s
$$;

-- The same from the legs: the words in deviations, the meaning in deviations, and half as much
-- likeness to the best in the same deviations.
create function pg_temp.expected(lexical_weight double precision)
    returns table (uri text, score numeric)
    language sql
as $$
    with
    lexical as (
        select l.chunk_id, l.standard
        from rag._context() as c
        cross join lateral rag._lexical_leg(
            c.tenant_id, c.partition_id, 'apple', null, null, 100
        ) as l
    ),
    meaning as (
        select
            e.chunk_id,
            d.uri,
            1 - (e.embedding <=> '[1,0,0]'::halfvec) as similarity,
            1 - (e.embedding <=> '[2,1,0]'::halfvec) as support
        from rag.embeddings as e
        join rag.chunks as k using (tenant_id, chunk_id)
        join rag.documents as d using (tenant_id, document_id)
        where e.tenant_id = rag._policy_tenant()
    ),
    spread as (
        select avg(m.similarity) as mean, stddev_pop(m.similarity) as deviation from meaning as m
    )
    select
        m.uri,
        round((
            expected.lexical_weight * coalesce(l.standard, 0)
            + (1 - expected.lexical_weight) * (
                (m.similarity - s.mean) / s.deviation + 0.5 * (m.support - s.mean) / s.deviation
            )
        )::numeric, 4)
    from meaning as m
    cross join spread as s
    left join lexical as l using (chunk_id)
$$;

select results_eq(
    format('select uri, score from pg_temp.found(lexical_weight => %s) order by uri', w.weight),
    format('select uri, score from pg_temp.expected(%s) order by uri', w.weight),
    format('the default adds up deviations, lexical weight %s', w.weight)
)
from unnest(array[0.25, 0.5, 0.75]) as w (weight);
select results_eq(
    'select * from pg_temp.found()', 'select * from pg_temp.found(lexical_weight => 0.5)',
    'both legs count the same, if nobody says otherwise'
);
select results_eq(
    'select * from pg_temp.found()', 'select * from pg_temp.found(''standard'')',
    'the default has a name'
);
select results_eq(
    'select uri from pg_temp.found()',
    $$ values ('best'), ('like'), ('unlike'), ('words') $$,
    'what is like the best comes before what is only as near to the query'
);
select results_eq(
    'select uri from pg_temp.found(mode => ''semantic'')',
    $$ values ('best'), ('unlike'), ('like'), ('words') $$,
    'meaning alone is the order of its cosines'
);
select results_eq(
    'select uri, score from pg_temp.found(mode => ''lexical'')',
    $$
        select d.uri, round(l.standard::numeric, 4)
        from rag._context() as c
        cross join lateral rag._lexical_leg(
            c.tenant_id, c.partition_id, 'apple', null, null, 100
        ) as l
        join rag.chunks as k on k.chunk_id = l.chunk_id
        join rag.documents as d on d.document_id = k.document_id
        order by l.score desc
    $$,
    'words alone are their deviations'
);
select ok(
    not exists (
        select from pg_temp.found('linear') as f where f.score not between 0 and 1
    ),
    'linear is between 0 and 1'
);

-- Not embedded yet --------------------------------------------------------------------------------

do $$ begin perform pg_temp.put('waits', 'apple apple apple', null); end $$;
select results_eq(
    'select uri from pg_temp.found() where rank <= 2', $$ values ('best'), ('waits') $$,
    'what waits for its embedding is of average meaning'
);
do $$ begin perform pg_temp.put('waits', 'quince', null); end $$;
select results_eq(
    'select uri from pg_temp.found(query => ''quince'') where rank = 1', array['waits'],
    'and can be the best'
);
select ok(
    (select f.score from pg_temp.found(query => 'quince') as f where f.uri = 'like')
    = (select f.score from pg_temp.found(query => 'quince') as f where f.uri = 'unlike'),
    'which then lends nothing to what is like it'
);
select results_eq(
    'select uri from pg_temp.found(query => ''nowhere'') where rank = 1', array['best'],
    'without any of the words the meaning serves alone'
);

-- Ties --------------------------------------------------------------------------------------------

-- One is 1st by words and 2nd by meaning, one the other way round: the words stand out by more.
do $$
begin
    perform rag.delete(d.uri) from rag.documents as d;
    for i in 1..30 loop
        perform pg_temp.put('other ' || i, 'cherry ' || i, '[0,1,0]');
    end loop;
    perform pg_temp.put('by meaning', 'the apple is one of twenty other words here', '[1,0,0.1]');
    perform pg_temp.put('by words', 'apple apple apple banana', '[1,0,0.3]');
end
$$;
select results_eq(
    'select uri from pg_temp.found(''rrf'', query => ''apple banana'') where rank <= 2',
    $$ values ('by words'), ('by meaning') $$,
    'equal ranks are told apart by deviations'
);
-- All others are of equal meaning, 3rd to 32nd, and without the words.
select results_eq(
    $$
        select s.semantic_rank, round(s.score::numeric, 6)
        from rag.search('apple banana', 40, embedding => '[1,0,0]', fusion => 'rrf') as s
        where s.lexical_rank is null
    $$,
    $$
        select n, round(0.5 * 61 / (60 + least(n, 31)) + 0.5 * 61 / (60 + 31), 6)
        from generate_series(3, 32) as n
    $$,
    'places of two legs are told apart down to the 30th'
);
select results_eq(
    $$
        select s.semantic_rank, round(s.score::numeric, 6)
        from rag.search(
            'apple', 40, embedding => '[1,0,0]', fusion => 'rrf', mode => 'semantic'
        ) as s
    $$,
    $$ select n, round(61.0 / (60 + n), 6) from generate_series(1, 32) as n $$,
    'those of one leg all the way'
);

select finish();
rollback;
