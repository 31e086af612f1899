-- What embeds a query without its model: word vectors, and the cache of exact embeddings.

begin;
select plan(109);

-- pgTAP runs as whoever acts.
do $$ begin execute format('grant usage on schema %I to public', (
    select n.nspname from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace
    where p.proname = 'throws_ok' limit 1
)); end $$;

-- Three dimensions, so that vectors can be written by hand.
do $$
begin
    delete from rag.models;
    perform rag._create_model('tiny', 3, 'test', query_prefix => 'query: ', is_active => true);
    perform rag._create_model('other', 4, 'test');
    perform rag.create_tenant('acme');
    perform rag.create_tenant('globex');
    perform rag.set_tenant('acme');
end
$$;
create role qv_app in role rag_app;
create role qv_admin in role rag_admin;
create role qv_worker in role rag_worker;
select rag.grant_tenant('qv_app', 'acme');
select rag.grant_tenant('qv_app', 'globex');

create function pg_temp.model(name text default 'tiny')
    returns int
    language sql
as $$
    select m.model_id from rag.models as m where m.name = model.name
$$;

create function pg_temp.words(name text default 'tiny')
    returns int
    language sql
as $$
    select m.word_vector_set from rag.models as m where m.name = words.name
$$;

-- What a search says of the query's embedding.
create function pg_temp.kind(query text, mode text default 'hybrid')
    returns text
    language sql
as $$
    select distinct s.query_embedding from rag.search(kind.query, mode => kind.mode) as s
$$;

-- Claim all that waits, and give every query the same vector.
create function pg_temp.answer(vector vector default '[0,0,1]')
    returns int
    language sql
as $$
    select rag.complete_queries(
        c.lease_token, array_agg(c.query_id), array_agg(answer.vector)
    )
    from rag.claim_queries('w', 'tiny') as c
    group by c.lease_token
$$;

do $$
begin
    perform rag.put('apple banana', 'a');
    perform rag.put('apple cherry', 'b');
    delete from rag.jobs;
end
$$;

-- Words of a query -------------------------------------------------------------------------------

select is(
    rag._query_tokens(q.query), q.tokens, format('the words of %L', q.query)
)
from (
    values
    ('How do refunds work?', '{how,do,refunds,work}'::text[]),
    ('  don''t  ', '{don,t}'),
    ('¿Qué CANCIÓN?', '{que,cancion}'),
    ('“quoted” — dashed…', '{quoted,dashed}'),
    ('ERR_404 node.js C++', '{err,404,node,js,c}'),
    ('[a] {b} `c` \d ~e', '{a,b,c,d,e}'),
    (U&'\65E5\672C\3002\8A9E', array[U&'\65E5\672C', U&'\8A9E']),
    (E'tab\tline\nend', '{tab,line,end}'),
    ('?!', '{}'),
    ('', '{}')
) as q (query, tokens);
select is(rag._query_tokens(null), null, 'no query has no words');
select is(cardinality(rag._query_tokens(repeat('a ', 1999))), 256, 'no more than 256 words count');
select is(
    cardinality(rag._query_tokens(repeat('a', 10000) || ' b')), 1, 'nor more than 4,000 characters'
);

-- Learning ---------------------------------------------------------------------------------------

select is(pg_temp.kind('apple'), 'none', 'without word vectors there is no embedding');
select throws_ok(
    $$ select rag.search('apple', mode => 'semantic') $$,
    'RG006', 'mode semantic needs the embedding of the query', 'and none by meaning'
);
select isnt_empty(
    $$ select from rag.status() where item = 'word vectors' and warning ~ '^none yet' $$,
    'status says so'
);

create temporary table sets (n int, set_id int);
insert into sets select 1, rag.begin_word_vectors('w', 'tiny', 'first');
select isnt((select s.set_id from sets as s), null, 'a worker begins');
select is(rag.begin_word_vectors('v', 'tiny', 'first'), null, 'another one does not meanwhile');
select is(
    rag.begin_word_vectors('v', 'tiny', 'better'), null, 'not even if it knows a better recipe'
);
select isnt(rag.begin_word_vectors('v', 'other', 'first'), null, 'but for another model');
select ok(rag.extend_word_vectors(s.set_id, 0.25), 'it tells how far it is') from sets as s;
select ok(rag.extend_word_vectors(s.set_id, 0.1), 'and is still at it') from sets as s;
select is(
    (select w.progress from rag.word_vector_sets as w join sets as s using (set_id)),
    0.25::real, 'what is done stays done'
);
select is(
    (select value from rag.status() where item = 'word vectors'),
    '0 words, 25 % of the next ones learned', 'status tells it, too'
);
select throws_ok(
    format('select rag.activate_word_vectors(%s)', s.set_id),
    '55000', null, 'nothing is put into use while there is nothing'
)
from sets as s;
select throws_ok(
    format('select rag.put_word_vectors(%s, ''{a}'', array[''[1,0]'']::vector[])', s.set_id),
    '22023', 'a word vector has the wrong number of dimensions', 'a vector has the model''s size'
)
from sets as s;
select throws_ok(
    format('select rag.put_word_vectors(%s, ''{a,b}'', array[''[1,0,0]'']::vector[])', s.set_id),
    '22023', 'words and embeddings differ in length', 'and each word has one'
)
from sets as s;
select is(
    rag.put_word_vectors(
        s.set_id, '{apple,banana,pine,##apple,##s}',
        array['[1,0,0]', '[0,1,0]', '[0,0,1]', '[0,2,0]', '[3,0,0]']::vector[]
    ),
    5, 'words are handed in'
)
from sets as s;
select is(
    rag.put_word_vectors(s.set_id, '{apple}', array['[1,0,0]']::vector[]), 1, 'again is no error'
)
from sets as s;
select is(pg_temp.kind('apple'), 'none', 'nobody sees them yet');
select ok(rag.activate_word_vectors(s.set_id), 'until they are put into use') from sets as s;
select is(pg_temp.kind('apple'), 'words', 'then a search has them');
select is(
    (select value from rag.status() where item = 'word vectors'), '5 words', 'status tells it'
);
select is(
    (select warning from rag.status() where item = 'word vectors'), null, 'and is content'
);
select is(rag.begin_word_vectors('v', 'tiny', 'first'), null, 'that recipe is done');
select ok(not rag.extend_word_vectors(s.set_id, 1), 'a set in use is nobody''s to change')
from sets as s;
select is(
    rag.put_word_vectors(s.set_id, '{apple}', array['[0,0,1]']::vector[]), 0, 'not by a word'
)
from sets as s;
select ok(not rag.activate_word_vectors(s.set_id), 'nor can it be put into use twice')
from sets as s;

-- Sums -------------------------------------------------------------------------------------------

select is(
    rag._sum_word_vectors(pg_temp.words(), q.query), q.vector, format('the sum of %L', q.query)
)
from (
    values
    ('apple', '[1,0,0]'::vector),
    ('Apple!', '[1,0,0]'),
    ('apple banana', l2_normalize('[1,1,0]'::vector)),
    ('apple apple banana', l2_normalize('[2,1,0]'::vector)),
    ('pineapple', l2_normalize('[0,2,1]'::vector)),
    ('pineapples apple', l2_normalize('[4,2,1]'::vector)),
    ('pinexapple', l2_normalize('[0,2,1]'::vector)),
    ('banana xyz', '[0,1,0]'),
    ('xyz', null),
    ('', null),
    (null, null)
) as q (query, vector);
select is(
    rag._sum_word_vectors(pg_temp.words('other'), 'apple'), null, 'another model has its own words'
);
select is(pg_temp.kind('cherry'), 'none', 'a query without a known word has no embedding');
select is(pg_temp.kind('apple', 'lexical'), 'none', 'mode lexical needs none');

-- A newer recipe, a lost worker ------------------------------------------------------------------

insert into sets select 2, rag.begin_word_vectors('w', 'tiny', 'second', '1 hour');
update rag.word_vector_sets as w
set due_at = now() - interval '1 second'
from sets as s
where s.n = 2 and w.set_id = s.set_id;
select isnt_empty(
    $$ select from rag.status() where item = 'word vectors' and warning ~ '^nobody is learning' $$,
    'a worker that vanished is missed'
);
insert into sets select 3, rag.begin_word_vectors('v', 'tiny', 'second');
select isnt((select s.set_id from sets as s where s.n = 3), null, 'another worker begins anew');
select ok(
    not rag.extend_word_vectors((select s.set_id from sets as s where s.n = 2), 0.5),
    'the first one is told'
);
select is(
    rag.put_word_vectors(
        (select s.set_id from sets as s where s.n = 3), '{apple}', array['[0,0,5]']::vector[]
    ),
    1, 'the second one learns'
);
select is(
    rag._sum_word_vectors(pg_temp.words(), 'apple'), '[1,0,0]', 'meanwhile the old set serves'
);
select ok(rag.activate_word_vectors((select s.set_id from sets as s where s.n = 3)), 'the switch');
select is(rag._sum_word_vectors(pg_temp.words(), 'apple'), '[0,0,1]', 'then the new one');
select is(
    (select count(*) from rag.word_vectors), 1::bigint, 'of the old one nothing is left'
);
select throws_ok(
    $$ select rag.begin_word_vectors('w', 'missing', 'first') $$,
    'RG005', 'model "missing" does not exist', 'a model must be there'
);

-- Feedback ---------------------------------------------------------------------------------------

do $$
declare
    v_chunks bigint[];
begin
    perform rag.complete_jobs(
        c.lease_token, array_agg(c.job_id), array_agg('[1,0,0]'::vector)
    )
    from rag.claim_jobs('w') as c
    group by c.lease_token;
    insert into rag.embeddings (
        partition_id, tenant_id, chunk_id, model_id, collection_id, embedding
    )
    select c.partition_id, c.tenant_id, c.chunk_id, pg_temp.model(), c.collection_id, '[0,3,0]'
    from rag.chunks as c
    join rag.tenants as t on t.tenant_id = c.tenant_id and t.name = 'acme';
end
$$;
-- Two parts of the word, one part of the passages: (0, 1, 2), so 1 / sqrt 5.
select results_eq(
    $$
        select round(s.similarity::numeric, 3)
        from rag.search('apple', mode => 'semantic') as s
    $$,
    array[0.447, 0.447],
    'passages with the words lead the vector of the words'
);

savepoint weighing;
update rag.embeddings as e
set embedding = '[1,0,0]'
from rag.chunks as c
where c.tenant_id = e.tenant_id and c.chunk_id = e.chunk_id and c.content = 'apple cherry';
create function pg_temp.led(scores double precision[], contents text[])
    returns numeric[]
    language sql
as $$
    select array(
        select round(u.x::numeric, 2)
        from unnest(
            rag._with_feedback(
                c.tenant_id, c.partition_id, pg_temp.model(), '[0,0,1]',
                array(
                    select k.chunk_id
                    from rag.chunks as k
                    where k.tenant_id = c.tenant_id and k.content = any(led.contents)
                    order by array_position(led.contents, k.content)
                ),
                led.scores
            )::vector::real[]
        ) as u (x)
    )
    from rag._context() as c
$$;
-- (0, 3, 0) + (1, 0, 0) / 4 of length 1, and (0, 0, 2).
select is(
    pg_temp.led('{2,1}', '{apple banana,apple cherry}'), '{0.04,0.45,0.89}',
    'a passage with half the score counts a quarter'
);
select is(
    pg_temp.led(null, '{no such passage}'), '{0.00,0.00,1.00}',
    'without passages the words serve alone'
);
rollback to savepoint weighing;

-- The cache --------------------------------------------------------------------------------------

delete from rag.queries;
select is(pg_temp.kind('apple'), 'words', 'a first search has the words');
select results_eq(
    'select q.query from rag.queries as q', array['apple'], 'and notes its query'
);
select is(pg_temp.kind('  apple '), 'words', 'the same again');
select is((select count(*) from rag.queries), 1::bigint, 'is not noted twice');
select is(
    (select count(*) from rag.search('banana', embedding => '[1,0,0]')
    where (select count(*) from rag.queries) > 1),
    0::bigint, 'with an embedding there is nothing to note'
);
select is(
    (select count(*) from rag.claim_queries('w', 'other')), 0::bigint,
    'a worker with another model gets none'
);
create temporary table claimed as select * from rag.claim_queries('w', 'tiny');
select results_eq(
    'select query_prefix, query from claimed', $$ values ('query: ', 'apple') $$,
    'a worker gets the query and what goes before it'
);
select is((select count(*) from rag.claim_queries('v', 'tiny')), 0::bigint, 'one worker');
select is(
    rag.complete_queries(gen_random_uuid(), array[c.query_id], array['[1,0,0]']::vector[]),
    0, 'who has not claimed it cannot answer'
)
from claimed as c;
select is(
    rag.complete_queries(c.lease_token, array[c.query_id], array['[0,0,2]']::vector[]),
    1, 'who has can'
)
from claimed as c;
select is((select count(*) from rag.queries), 0::bigint, 'the text of the query is gone');
select is(pg_temp.kind('apple'), 'cached', 'the next search has the exact embedding');
select is(pg_temp.kind(E' apple\n'), 'cached', 'whatever is around it');
select is(pg_temp.kind('apple', 'semantic'), 'cached', 'in mode semantic, too');
select is(
    rag._cached_embedding(
        (select t.tenant_id from rag.tenants as t where t.name = 'acme'), pg_temp.model(), 'apple'
    ),
    '[0,0,1]', 'of length 1'
);
select results_eq(
    $$ select distinct query_embedding from rag.search('apple', embedding => '[1,0,0]') $$,
    array['given'], 'the caller''s own goes first'
);
select is(
    (select count(*) from rag.queries), 0::bigint, 'what is in the cache is not asked again'
);

-- Each tenant's own.
do $$
begin
    perform rag.set_tenant('globex');
    perform rag.put('apple pie', 'g');
end
$$;
select is(pg_temp.kind('apple'), 'words', 'another tenant has its own cache');
set local role qv_app;
select throws_ok('select from rag.queries', '42501', null, 'rag_app does not read queries');
select throws_ok('select from rag.query_embeddings', '42501', null, 'nor embeddings of queries');
select throws_ok('select from rag.word_vectors', '42501', null, 'nor word vectors');
select throws_ok($$ select rag.claim_queries('w', 'tiny') $$, '42501', null, 'nor does it claim');
select ok(rag.prepare_query('ahead'), 'it may ask for an embedding ahead');
set local role qv_worker;
select throws_ok('select from rag.queries', '42501', null, 'rag_worker does not read queries');
select is(
    (select array_agg(c.query order by c.query) from rag.claim_queries('w', 'tiny') as c),
    '{ahead,apple}', 'but claims them, of every tenant'
);
reset role;

-- Leases, limits.
update rag.queries set due_at = now() - interval '1 second';
select is((select count(*) from rag.claim_queries('w', 'tiny')), 2::bigint, 'a lost lease');
update rag.queries set due_at = now() - interval '1 second';
select is(
    (select count(*) from rag.claim_queries('w', 'tiny')), 0::bigint,
    'a query that cost two workers is forgotten'
);
select is((select count(*) from rag.queries), 0::bigint, 'for good');
select is(rag.prepare_query('bad'), true, 'a query');
select is(pg_temp.answer('[0,0,0]'), 0, 'with a vector that is none');
select is((select count(*) from rag.queries), 0::bigint, 'is forgotten, too');
select ok(not rag.prepare_query(repeat('x', 4001)), 'a text is no query');
select is(
    (select count(*) filter (where rag.prepare_query('q' || n)) from generate_series(1, 150) as n),
    100::bigint, 'a hundred may wait'
);
update rag.queries set created_at = now() - interval '11 minutes' where query in ('q1', 'q2');
select ok(rag.prepare_query('later'), 'one that nobody came for makes room');
select is(
    (select count(*) from rag.claim_queries('w', 'tiny', 10)), 10::bigint, 'a batch'
);
delete from rag.queries;

set local role qv_admin;
select rag.set_query_cache('globex', 3, '1 hour');
reset role;
do $$
begin
    perform rag.prepare_query('q' || n) from generate_series(1, 5) as n;
    perform pg_temp.answer();
end
$$;
select is(
    (
        select count(*) from rag.query_embeddings as e
        join rag.tenants as t on t.tenant_id = e.tenant_id and t.name = 'globex'
    ),
    3::bigint, 'no more are kept than the tenant''s size'
);
select is(
    (select max(e.expires_at - e.created_at) <= interval '1 hour 1 second'
    from rag.query_embeddings as e
    join rag.tenants as t on t.tenant_id = e.tenant_id and t.name = 'globex'),
    true, 'nor longer than its time'
);
update rag.query_embeddings set expires_at = now() - interval '1 second';
select ok(rag.prepare_query('q5'), 'what has expired is asked anew');
select is(pg_temp.answer(), 1, 'and answered');
select is((select count(*) from rag.query_embeddings), 1::bigint, 'what has expired goes');
select rag.set_query_cache('globex', 0);
select is((select count(*) from rag.query_embeddings), 0::bigint, 'switched off, nothing is kept');
select ok(not rag.prepare_query('q1'), 'nor noted');
select throws_ok(
    $$ select rag.set_query_cache('globex', -1) $$, '22023', null, 'a size is not negative'
);
select throws_ok(
    $$ select rag.set_query_cache('globex', 1, '0') $$, '22023', null, 'a lifetime is some time'
);
select throws_ok(
    $$ select rag.claim_queries('w', 'tiny', 0) $$, '22023', 'invalid batch', 'a batch is not empty'
);

select * from finish();
rollback;
