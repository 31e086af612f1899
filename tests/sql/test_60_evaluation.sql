-- Evaluation: measures worked out by hand, runs kept and compared, each tenant's own.

begin;

select plan(40);

-- Measures ----------------------------------------------------------------------------------------

create function pg_temp.measured(uris text[], relevant text[], grades real[], k int)
    returns text
    language sql
as $$
    select format('%s %s %s', round(m.ndcg::numeric, 4), round(m.recall::numeric, 4),
        round(m.mrr::numeric, 4))
    from rag._measures(uris, relevant, grades, k) as m
$$;

select is(
    pg_temp.measured(w.uris, w.relevant, w.grades::real[], w.k), w.measures, w.sentence
)
from (
    values
    ('{a,b}'::text[], '{a}'::text[], '{1}', 10, '1.0000 1.0000 1.0000', 'found first'),
    -- 1 / log2(3)
    ('{b,a}', '{a}', '{1}', 10, '0.6309 1.0000 0.5000', 'found second'),
    ('{b,c}', '{a}', '{1}', 10, '0.0000 0.0000 0.0000', 'not found'),
    ('{}', '{a}', '{1}', 10, '0.0000 0.0000 0.0000', 'nothing found'),
    (null, '{a}', '{1}', 10, '0.0000 0.0000 0.0000', 'null found'),
    ('{b,c,a}', '{a}', '{1}', 2, '0.0000 0.0000 0.0000', 'found behind k'),
    -- (1 + 3 / log2(3)) / (3 + 1 / log2(3))
    ('{a,b}', '{a,b}', '{1,2}', 10, '0.7967 1.0000 1.0000', 'graded, in the wrong order'),
    ('{b,a}', '{a,b}', '{1,2}', 10, '1.0000 1.0000 1.0000', 'graded, in the right order'),
    ('{a,x}', '{a,b}', '{1,1}', 10, '0.6131 0.5000 1.0000', 'half of them'),
    ('{x,a}', '{a,x}', '{1,0}', 10, '0.6309 1.0000 0.5000', 'grade 0 is not relevant'),
    ('{x,x,a}', '{a}', '{1}', 10, '0.6309 1.0000 0.5000', 'two passages are one document'),
    ('{a,b,c}', '{a,b,c}', '{1,1,1}', 1, '1.0000 0.3333 1.0000', 'the ideal is cut at k too')
) as w (uris, relevant, grades, k, measures, sentence);

-- Sets and runs -----------------------------------------------------------------------------------

do $$
begin
    perform rag.create_tenant('judge');
    perform rag.set_tenant('judge');
    perform rag.put('Apples grow on trees.', 'apples');
    perform rag.put('Potatoes grow in the ground.', 'potatoes');
    perform rag.put('The ground is wet.', 'ground');
end
$$;

select is(
    rag.add_judgements('garden', '[
        {"query_id": "1", "query": "apples", "uri": "apples"},
        {"query_id": "2", "query": "potatoes in the ground", "uri": "potatoes", "grade": 2},
        {"query_id": "2", "query": "potatoes in the ground", "uri": "ground"},
        {"query": "nothing fits", "uri": "apples", "grade": 0}
    ]'),
    4::bigint, 'four judgements are added'
);
select is(
    rag.add_judgements('garden', '[{"query_id": "1", "query": "apples", "uri": "apples"}]'),
    1::bigint, 'one is given again'
);
select results_eq(
    'select count(*) from rag.judgements', 'values (4::bigint)', 'which makes no fifth'
);
create temporary table first_run as select * from rag.evaluate('garden', mode => 'lexical');
select results_eq(
    'select queries, ndcg, recall, mrr from first_run',
    'values (2, 1::double precision, 1::double precision, 1::double precision)',
    'the lexical leg answers both; a question without an answer is left out'
);
select ok(milliseconds > 0, 'and takes some time') from first_run;
select is(
    (select r.label from rag.eval_runs as r join first_run as f using (run_id)), 'lexical',
    'the run is kept, with what it measured as its label'
);
select results_eq(
    'select query_id, uris[1] from rag.eval_results order by query_id',
    $$ values ('1', 'apples'), ('2', 'potatoes') $$,
    'and each question with what was found'
);
do $$ begin perform rag.delete('apples'); end $$;
create temporary table second_run as select * from rag.evaluate('garden', mode => 'lexical');
select results_eq(
    'select ndcg, recall from second_run',
    'values (0.5::double precision, 0.5::double precision)',
    'without the document a question fails'
);
select results_eq(
    $$
        select query_id, query, ndcg_before, ndcg_after, difference
        from rag.compare_runs(
            (select run_id from first_run), (select run_id from second_run)
        )
    $$,
    $$
        values
        ('1', 'apples', 1::double precision, 0::double precision, -1::double precision),
        ('2', 'potatoes in the ground', 1, 1, 0)
    $$,
    'two runs are compared, what lost most first'
);

select results_eq(
    $$
        select
            label_before, queries, ndcg_before, ndcg_after, difference, better, worse, p
        from rag.compare_means((select run_id from first_run), (select run_id from second_run))
    $$,
    $$
        values (
            'lexical', 2, 1::double precision, 0.5::double precision, -0.5::double precision, 0, 1,
            1::double precision
        )
    $$,
    'and in one row; one question alone proves nothing'
);
do $$
begin
    perform rag.add_judgements('orchard', '[{"query_id": "1", "query": "apples", "uri": "a"}]');
end
$$;
create temporary table other_run as select * from rag.evaluate('orchard', mode => 'lexical');
select throws_ok(
    format(
        'select from %s((select run_id from first_run), (select run_id from other_run))', w.name
    ),
    '22023', null,
    'runs of two sets are not compared by ' || w.name
)
from (values ('rag.compare_runs'), ('rag.compare_means')) as w (name);

-- Chance ------------------------------------------------------------------------------------------

select is(rag._chance(w.differences, w.seeds), w.chance::double precision, w.sentence)
from (
    values
    (null::double precision[], null::bigint[], 1::numeric, 'no difference is by chance'),
    ('{0.5}', '{7}', 1, 'one difference may have either sign'),
    -- Of the eight ways to give signs two make 3, the other way round as well.
    ('{1,1,1}', '{7,8,9}', 0.25, 'three of one sign: two of eight'),
    ('{1,1,-1}', '{7,8,9}', 1, 'whatever the signs, three ones make at least 1')
) as w (differences, seeds, chance, sentence);
select ok(
    rag._chance(array_fill(0.1::double precision, array[40]), array_agg(n)) < 0.001,
    'forty of one sign are no chance'
)
from generate_series(1, 40) as n;
-- By the normal distribution: 14 above 26 of 40 coin flips, p = 0.06 to 0.09.
select ok(
    rag._chance(array_agg(case when n <= 26 then 0.1 else -0.1 end), array_agg(n))
    between 0.05 and 0.11,
    '26 against 14 may be chance'
)
from generate_series(1, 40) as n;
select is(
    rag._chance(array_agg(0.1 + n / 100.0), array_agg(n)),
    rag._chance(array_agg(-0.1 - n / 100.0), array_agg(n)),
    'better or worse is the same'
)
from generate_series(1, 20) as n;

-- Others, and mistakes ----------------------------------------------------------------------------

do $$
begin
    perform rag.create_tenant('nosy');
    perform rag.set_tenant('nosy');
end
$$;
select throws_ok(
    'select * from rag.evaluate(''garden'')', 'P0002', null, 'another tenant has no such set'
);
select throws_ok(
    'select from rag.compare_runs((select run_id from first_run), (select run_id from second_run))',
    'P0002', null, 'nor such runs'
);
select throws_ok(
    format('select rag.add_judgements(''x'', %L)', w.judgements), w.code, null, w.sentence
)
from (
    values
    ('{}', '22023', 'judgements are an array'),
    ('[1]', '22023', 'of objects'),
    ('[{"query": "x"}]', '22023', 'with a uri'),
    ('[{"query": "x", "uri": "y", "grade": "good"}]', '22023', 'and a grade that is a number'),
    ('[{"query": "x", "uri": "y", "grade": 101}]', '22023', 'of at most 100')
) as w (judgements, code, sentence);
select ok(not rag.drop_eval_set('garden'), 'another''s set is not dropped');
do $$ begin perform rag.set_tenant('judge'); end $$;
select ok(rag.drop_eval_set('garden'), 'one''s own is');

select * from finish();

rollback;
