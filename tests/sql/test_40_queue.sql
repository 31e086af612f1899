-- The rules of the queue as one worker meets them. What needs two sessions is in
-- tests/test_queue_races.py.

begin;
select plan(87);

-- Three dimensions, so that vectors can be written by hand.
do $$
begin
    delete from rag.models;
    perform rag._create_model('tiny', 3, 'test', is_active => true);
    perform rag.create_tenant('big');
    perform rag.create_tenant('small');
    perform rag.set_tenant('default');
end
$$;

create temporary table claims (
    name text primary key,
    token uuid,
    jobs bigint[],
    texts text[],
    models text[]
);

-- Claim under a name; how many jobs that brought.
create function pg_temp.claim(
    name text, batch int default 64, models text[] default null
)
    returns int
    language sql
as $$
    insert into claims (name, token, jobs, texts, models)
    select
        claim.name,
        (array_agg(c.lease_token))[1],
        coalesce(array_agg(c.job_id), '{}'),
        coalesce(array_agg(c.content order by c.content), '{}'),
        coalesce(array_agg(distinct c.model), '{}')
    from rag.claim_jobs('worker', claim.batch, models => claim.models) as c
    returning cardinality(jobs)
$$;

create function pg_temp.complete(name text, vector vector default '[1,2,2]')
    returns int
    language sql
as $$
    select rag.complete_jobs(
        c.token, c.jobs, array_fill(complete.vector, array[cardinality(c.jobs)])
    )
    from claims as c
    where c.name = complete.name
$$;

create function pg_temp.fail(name text, error text, permanent boolean default false)
    returns int
    language sql
as $$
    select rag.fail_jobs(c.token, c.jobs, fail.error, fail.permanent)
    from claims as c
    where c.name = fail.name
$$;

create function pg_temp.token(name text)
    returns uuid
    language sql
as $$
    select c.token from claims as c where c.name = token.name
$$;

-- All leases and all backoffs end.
create function pg_temp.let_time_pass()
    returns void
    language sql
as $$
    update rag.jobs set due_at = now() - interval '1 second' where failed_at is null
$$;

-- A claim is a lease.
do $$ begin perform rag.put('one', 'a'); end $$;
select is(
    (
        select count(*)::int
        from rag.jobs as j
        join rag.chunks as c on j.chunk_id = c.chunk_id and j.content_hash = c.content_hash
        where j.attempts = 0 and j.lease_token is null and j.due_at <= clock_timestamp()
    ),
    1, 'a put leaves one job for its chunk'
);
select results_eq(
    $$ select c.model, c.dimensions, c.document_prefix, c.content, c.attempts
    from rag.claim_jobs('embedder 7', 10, '1 minute') as c $$,
    $$ values ('tiny', 3, '', 'one', 1) $$,
    'a claim has all that is needed to embed'
);
select results_eq(
    $$ select j.worker, j.attempts::int, j.lease_token is not null from rag.jobs as j $$,
    $$ values ('embedder 7', 1, true) $$,
    'its attempt is counted before anything is tried, so that a crash counts'
);
select ok(
    rag.next_due() between clock_timestamp() + interval '50 seconds'
    and clock_timestamp() + interval '1 minute',
    'the next job is due when the lease ends'
);
select is(pg_temp.claim('in vain'), 0, 'a leased job is nobody else''s');

-- Fencing.
do $$ begin perform pg_temp.let_time_pass(); end $$;
select is(pg_temp.claim('first'), 1, 'a job whose lease ran out is claimed again');
do $$ begin perform pg_temp.let_time_pass(); end $$;
select is(
    rag.extend_lease(pg_temp.token('first'), '1 minute'), 1,
    'a late heartbeat still holds what nobody else has claimed'
);
select ok(
    rag.next_due() > clock_timestamp() + interval '50 seconds', 'and moves the end of the lease'
);
do $$ begin perform pg_temp.let_time_pass(); end $$;
select is(pg_temp.claim('second'), 1, 'the second worker claims what the first has lost');
select isnt(pg_temp.token('first'), pg_temp.token('second'), 'under a token of its own');
select is(pg_temp.complete('first'), 0, 'the first cannot complete it any more');
select is(pg_temp.fail('first', 'too late'), 0, 'nor fail it');
select is(rag.release_jobs(pg_temp.token('first')), 0, 'nor release it');
select is(rag.extend_lease(pg_temp.token('first')), 0, 'nor hold it');
select is(
    (
        select rag.complete_jobs(gen_random_uuid(), c.jobs, '{"[1,0,0]"}')
        from claims as c
        where c.name = 'second'
    ),
    0, 'nor can a token that nobody was given'
);
select is(
    (
        select rag.complete_jobs(null, c.jobs, '{"[1,0,0]"}')
        from claims as c
        where c.name = 'second'
    ),
    0, 'nor no token'
);
select is_empty('select from rag.embeddings', 'nothing of all that is stored');
select is(pg_temp.complete('second'), 1, 'the second completes it');
select is_empty('select from rag.jobs', 'a finished job is gone');
select ok(
    (select e.embedding <=> '[1,2,2]' < 0.001 from rag.embeddings as e), 'its embedding is there'
);
select is(pg_temp.complete('second'), 0, 'completing it again does nothing');
select is(rag.next_due(), null, 'nothing is due when nothing waits');
select is(rag.complete_jobs(gen_random_uuid(), '{}', '{}'), 0, 'nothing can be completed');
select is(rag.fail_jobs(gen_random_uuid(), '{}', 'nothing'), 0, 'and nothing failed');

do $$
begin
    perform rag.put('two', 'a');
    perform pg_temp.claim('slow');
    perform pg_temp.let_time_pass();
end
$$;
select is(
    pg_temp.complete('slow'), 1, 'a late completion counts while nobody else has claimed the job'
);

do $$ begin perform rag.put('three', 'a'); perform pg_temp.claim('stopped'); end $$;
select is(
    rag.release_jobs(pg_temp.token('stopped')), 1, 'a worker that stops gives back what it holds'
);
select results_eq(
    $$ select j.attempts::int, j.lease_token, j.due_at <= clock_timestamp() from rag.jobs as j $$,
    $$ values (0, null::uuid, true) $$,
    'for others to claim at once, and the attempt does not count'
);

-- Failures.
create temporary table delays (attempt int, delay double precision);
do $$
begin
    for i in 1..5 loop
        perform pg_temp.claim('attempt ' || i);
        perform pg_temp.fail('attempt ' || i, 'HTTP 503, number ' || i);
        insert into delays (attempt, delay)
        select j.attempts, extract(epoch from j.due_at - clock_timestamp())
        from rag.jobs as j
        where j.failed_at is null;
        perform pg_temp.claim('too early ' || i);
        perform pg_temp.let_time_pass();
    end loop;
end
$$;
select is_empty(
    $$ select from claims where name like 'too early %' and jobs <> '{}' $$,
    'a job that failed is not due at once'
);
select results_eq(
    'select attempt from delays order by attempt', array[1, 2, 3, 4], 'four failures put it back'
);
select is_empty(
    $$
        select from delays
        where delay not between power(2, attempt) - 1 and power(2, attempt) * 1.5
    $$,
    'after 2, 4, 8 and 16 seconds and up to half as much again'
);
select results_eq(
    'select tenant, model, uri, ordinal, error, attempts from rag.failures()',
    $$ values ('default', 'tiny', 'a', 0, 'HTTP 503, number 5', 5) $$,
    'the fifth parks it, with its error and its whereabouts'
);
select is(pg_temp.claim('parked'), 0, 'a parked job is not claimed');
select is(rag.next_due(), null, 'and not waited for');
select throws_ok(
    $$ select rag.retry_failed('nobody') $$, 'RG002', 'tenant "nobody" does not exist',
    'parked jobs of a tenant that does not exist cannot be tried again'
);
select is(rag.retry_failed('small'), 0, 'those of another tenant are left alone');
select is(rag.retry_failed('default'), 1, 'those of this one are tried again');
select is(rag.retry_failed(), 0, 'once');
select is_empty('select from rag.failures()', 'they are failures no more');
select is(pg_temp.claim('again'), 1, 'and can be claimed');
select is((select j.attempts::int from rag.jobs as j), 1, 'with five new attempts');
select is(
    pg_temp.fail('again', repeat('é', 3000), permanent => true), 1,
    'what can never succeed is failed for good'
);
select is(
    (select length(f.error) from rag.failures() as f), 2000,
    'and parked at its first attempt, with the beginning of a long error'
);
do $$ begin perform rag.retry_failed(); perform pg_temp.claim('speechless'); end $$;
select is(pg_temp.fail('speechless', '', permanent => true), 1, 'an error may be empty');
select is((select f.error from rag.failures() as f), 'unknown error', 'which is then told');

-- A text that kills its worker, among others.
do $$
begin
    perform rag.delete('a');
    perform rag.put('poison', 'poison');
    perform rag.put('good', 'good');
    perform rag.put('better', 'better');
    perform pg_temp.claim('crash');
    perform pg_temp.let_time_pass();
end
$$;
select is(
    pg_temp.claim('second crash'), 3, 'a lease that ran out once may be chance: all come again'
);
do $$
begin
    for i in 1..3 loop
        perform pg_temp.let_time_pass();
        perform pg_temp.claim('alone ' || i);
        perform pg_temp.complete('alone ' || i)
        from claims as c
        where c.name = 'alone ' || i and c.texts <> '{poison}';
        update rag.jobs set priority = 1 where lease_token = pg_temp.token('alone ' || i);
    end loop;
end
$$;
select results_eq(
    $$ select texts from claims where name like 'alone %' order by name $$,
    $$ values ('{poison}'::text[]), ('{good}'), ('{better}') $$,
    'after two each is claimed alone'
);
select is(
    (
        select array_agg(c.content)
        from rag.chunks as c
        where c.chunk_id in (select j.chunk_id from rag.jobs as j)
    ),
    '{poison}', 'so that the harmless ones get done'
);
do $$
begin
    for i in 1..40 loop
        perform rag.put('fresh ' || i, 'fresh ' || i);
    end loop;
    for i in 1..40 loop
        -- Always in front.
        update rag.jobs set priority = 0, due_at = '2000-01-01' where attempts > 1;
        perform pg_temp.claim('mixed ' || i, 2);
    end loop;
end
$$;
select is_empty(
    $$
        select from claims
        where name like 'mixed %' and 'poison' = any(texts) and texts <> '{poison}'
    $$,
    'fresh ones are never in its claim'
);
select is(
    (
        select count(*)::int
        from claims as c
        where c.name like 'mixed %' and c.texts = '{poison}'
    ),
    2, 'it gets five attempts in all'
);
select results_eq(
    'select uri, error, attempts from rag.failures()',
    $$ values ('poison', 'no worker finished it in 5 attempts', 5) $$,
    'and is parked'
);
select is(
    (
        select sum(cardinality(c.jobs))::int
        from claims as c
        where c.name like 'mixed %' and c.texts <> '{poison}'
    ),
    40, 'the fresh ones were all claimed'
);
do $$
begin
    delete from rag.jobs;
    perform rag.put('spent', 'spent');
    perform rag.put('waiting', 'waiting');
    update rag.jobs as j
    set attempts = 5, lease_token = gen_random_uuid(), error = 'HTTP 429', due_at = '2000-01-01'
    from rag.chunks as c
    where c.chunk_id = j.chunk_id and c.content = 'spent';
    perform pg_temp.claim('one', 1);
end
$$;
select is(
    (
        select c.texts
        from claims as c
        where c.name = 'one'
    ),
    '{waiting}',
    'a claim that meets nothing but spent jobs looks further'
);
select results_eq(
    'select error from rag.failures()',
    array['no worker finished it in 5 attempts; the last error was: HTTP 429'],
    'what went wrong earlier is not forgotten'
);

-- Vectors that cannot be stored.
create temporary table vectors (text text primary key, vector vector);
insert into vectors (text, vector)
values
('short', '[1,2]'),
('zero', '[0,0,0]'),
('none', null),
('right', '[1,2,2]'),
('huge', '[0,1e30,1e30]'),
('tiny', '[0,1e-30,0]');
do $$
begin
    delete from rag.jobs;
    perform rag.put(v.text, v.text) from vectors as v;
    perform pg_temp.claim('vectors');
end
$$;
select throws_ok(
    $$ select rag.complete_jobs(token, jobs, '{"[1,0,0]"}') from claims where name = 'vectors' $$,
    '22023', 'job_ids and embeddings differ in length', 'fewer vectors than jobs are an error'
);
select throws_ok(
    $$ select rag.complete_jobs(token, jobs, null) from claims where name = 'vectors' $$,
    '22023', 'job_ids and embeddings differ in length', 'no vectors are one'
);
select throws_ok(
    $$ select rag.complete_jobs(token, array[jobs[1], jobs[1]], '{"[1,0,0]", "[1,0,0]"}')
    from claims where name = 'vectors' $$,
    '22023', 'a job is null or given twice', 'two vectors for one job are one'
);
select is(
    (
        select rag.complete_jobs(j.lease_token, array_agg(j.job_id), array_agg(v.vector))
        from rag.jobs as j
        join rag.chunks as c on j.chunk_id = c.chunk_id
        join vectors as v on c.content = v.text
        group by j.lease_token
    ),
    3, 'a vector that cannot be stored keeps no other of its batch from it'
);
select results_eq(
    'select uri, error, attempts from rag.failures() order by uri',
    $$ values
    ('none', 'the model gave no vector', 1),
    ('short', 'the model gave 2 dimensions, tiny has 3', 1),
    ('zero', 'the model gave a zero vector, which has no direction', 1) $$,
    'it parks its own job at once, with the reason'
);
select results_eq(
    $$ select c.content, e.embedding <-> l2_normalize(v.vector)::halfvec < 0.001
    from rag.embeddings as e
    join rag.chunks as c using (tenant_id, chunk_id)
    join vectors as v on v.text = c.content
    order by c.content $$,
    $$ values ('huge', true), ('right', true), ('tiny', true) $$,
    'one too large or too small for half precision keeps its direction'
);
select is(rag.next_due(), null, 'no job is left waiting');

-- What becomes of the jobs of a text that goes.
do $$
begin
    delete from rag.jobs;
    perform rag.put('old text', 'doc');
    perform pg_temp.claim('old');
    perform rag.put('new text', 'doc');
end
$$;
select is(pg_temp.complete('old'), 0, 'the embedding of a text that was replaced is dropped');
select is(pg_temp.claim('new'), 1, 'the new text has a job');
select is(
    (
        select c.texts
        from claims as c
        where c.name = 'new'
    ),
    '{new text}', 'of its own'
);
do $$ begin perform rag.delete('doc'); end $$;
select is_empty('select from rag.jobs', 'a deleted document has no jobs');
select is(pg_temp.complete('new'), 0, 'and gets no embedding');
do $$ begin perform rag.put('right', 'the same text elsewhere'); end $$;
select is_empty('select from rag.jobs', 'a text that the tenant has already is not embedded again');
select is(
    (
        select count(*)::int
        from rag.embeddings as e
        join rag.chunks as c on e.chunk_id = c.chunk_id
        where c.content = 'right' and e.embedding <=> '[1,2,2]' < 0.001
    ),
    2, 'it has the embedding that is there'
);
do $$
begin
    perform rag.set_tenant('small');
    perform rag.put('right', 'the same text of another tenant');
end
$$;
select is(
    (select count(*)::int from rag.jobs), 1, 'a text that only another tenant has is embedded'
);

-- Turns.
create temporary table bulk (partition_id int, tenant_id int, chunks bigint[]);
do $$
begin
    delete from rag.jobs;
    -- Not by put_many, which would take most of this file's time.
    with made as (
        insert into rag.chunks (
            partition_id, tenant_id, document_id, collection_id, ordinal, start_offset, end_offset,
            content, content_hash
        )
        select t.partition_id, t.tenant_id, 0, 0, n, 0, 1, 'big ' || n, rag._hash('big ' || n)
        from rag.tenants as t
        cross join generate_series(1, 5000) as n
        where t.name = 'big'
        returning partition_id, tenant_id, chunk_id
    )
    insert into bulk (partition_id, tenant_id, chunks)
    select m.partition_id, m.tenant_id, array_agg(m.chunk_id)
    from made as m
    group by m.partition_id, m.tenant_id;
    perform rag._enqueue(b.tenant_id, b.partition_id, b.chunks, 10::smallint) from bulk as b;
    perform rag.set_tenant('big');
    perform rag.put('big and fresh');
    perform rag.set_tenant('small');
    perform rag.put_many((
        select jsonb_agg(jsonb_build_object('content', 'small ' || n))
        from generate_series(1, 10) as n
    ));
    perform pg_temp.claim('fair', 64);
    perform pg_temp.claim('full', 64);
end
$$;
select is(
    (
        select count(*)::int
        from claims as c
        cross join unnest(c.texts) as t (content)
        where c.name = 'fair' and t.content like 'small %'
    ),
    10, 'ten jobs behind five thousand of another tenant are in the next claim'
);
select is(
    (
        select count(*)::int
        from claims as c
        cross join unnest(c.texts) as t (content)
        where c.name = 'fair' and t.content like 'big%'
    ),
    32, 'which is shared by both'
);
select ok(
    (
        select 'big and fresh' = any(c.texts)
        from claims as c
        where c.name = 'fair'
    ),
    'a single put comes before a bulk load of its tenant'
);
select is(
    (
        select cardinality(c.jobs)
        from claims as c
        where c.name = 'full'
    ),
    64, 'who is alone gets all of a claim'
);
do $$
begin
    delete from rag.jobs;
    for i in 1..5 loop
        perform rag.create_tenant('t' || i);
        perform rag.set_tenant('t' || i);
        perform rag.put('text of t' || i);
    end loop;
    for i in 1..5 loop
        perform pg_temp.claim('turn ' || i, 1);
    end loop;
end
$$;
select is(
    (
        select count(distinct c.texts)::int
        from claims as c
        where c.name like 'turn %'
    ),
    5,
    'with more tenants than a claim has room for, each has its turn'
);

-- Two models.
do $$
begin
    delete from rag.jobs;
    perform rag._create_model('wide', 5, 'test', document_prefix => 'passage: ');
    perform rag.put('for two models');
    create temporary table turns (model text);
    for i in 1..40 loop
        with claimed as (
            select c.model, c.lease_token from rag.claim_jobs('worker') as c
        )
        insert into turns (model)
        select c.model from claimed as c;
        perform rag.release_jobs(j.lease_token) from rag.jobs as j;
    end loop;
    perform pg_temp.claim('for the active one', models => '{tiny}');
    perform pg_temp.claim('for the other one', models => '{wide}');
    perform pg_temp.claim('for nobody');
end
$$;
select results_eq(
    $$ select models, texts from claims where name like 'for %' order by name $$,
    $$ values
    ('{}'::text[], '{}'::text[]),
    ('{tiny}', '{for two models}'),
    ('{wide}', '{for two models}') $$,
    'a claim is of one model'
);
select ok(
    (select count(*) filter (where t.model = 'tiny') > 20 from turns as t),
    'of the active one in seven turns of eight'
);
select is(pg_temp.complete('for the other one', '[1,1,1,1,1]'), 1, 'each has its dimensions');
select is(pg_temp.complete('for the active one'), 1, 'and its embedding');
do $$
begin
    perform rag.put('wrong model');
    perform pg_temp.claim('wrong', models => '{tiny}');
end
$$;
select is(pg_temp.complete('wrong', '[1,1,1,1,1]'), 0, 'the vector of another model is refused');
select is(
    (
        select count(*)::int
        from rag.jobs as j
        where j.failed_at is null
    ),
    1, 'which parks the job of this model alone'
);

-- What is refused.
select throws_ok('select rag.claim_jobs(''w'', 0)', '22023', 'invalid batch', 'a batch of none');
select throws_ok('select rag.claim_jobs(''w'', 10001)', '22023', 'invalid batch', 'a huge batch');
select throws_ok('select rag.claim_jobs(''w'', null)', '22023', 'invalid batch', 'no batch size');
select throws_ok(
    'select rag.claim_jobs(''w'', 1, ''0'')', '22023', 'invalid lease', 'a lease of no time'
);
select throws_ok(
    'select rag.claim_jobs(''w'', 1, ''1 year'')', '22023', 'invalid lease', 'a lease for ever'
);
select throws_ok(
    'select rag.extend_lease(gen_random_uuid(), null)', '22023', 'invalid lease', 'no lease'
);
select is_empty(
    $$ select c.oid::regclass from pg_class as c
    where c.relnamespace in ('rag'::regnamespace, 'rag_data'::regnamespace)
    and c.relkind in ('r', 'p') and c.oid <> 'rag.models'::regclass
    and has_table_privilege('rag_worker', c.oid, 'select, insert, update, delete, truncate') $$,
    'a worker reads and writes no table but by the queue''s functions'
);
select is_empty(
    $$ select p.oid::regprocedure from pg_proc as p
    where p.pronamespace = 'rag'::regnamespace
    and p.proname in ('claim_jobs', 'complete_jobs', 'fail_jobs', 'release_jobs', 'extend_lease')
    and (has_function_privilege('rag_app', p.oid, 'execute')
    or not has_function_privilege('rag_worker', p.oid, 'execute')) $$,
    'which are for workers only'
);

select finish();
rollback;
