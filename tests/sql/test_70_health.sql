-- Progress, status and waiting as one session sees them. A wait that ends because of another
-- session is in tests/test_queue_races.py.

begin;
select plan(54);

-- Two dimensions, so that vectors can be written by hand.
do $$
begin
    delete from rag.models;
    perform rag._create_model('tiny', 2, 'test', is_active => true);
    perform rag.create_tenant('other');
    perform rag.set_tenant('default');
end
$$;

create role thl_app login in role rag_app;
create role thl_nobody login in role rag_app;
create role thl_admin login in role rag_admin;
create role thl_worker login in role rag_worker;

-- What a role sees; a line each.
create function pg_temp.seen(role text, query text)
    returns setof text
    language plpgsql
as $$
begin
    execute format('set local role %I', seen.role);
    return query execute seen.query;
    reset role;
end
$$;

-- Claim so many jobs and complete them.
create function pg_temp.embed(count int)
    returns int
    language sql
as $$
    select rag.complete_jobs(
        (array_agg(c.lease_token))[1], array_agg(c.job_id),
        array_fill('[1,1]'::vector, array[count(*)::int])
    )
    from rag.claim_jobs('worker', embed.count) as c
$$;

-- As if it had been put by a transaction that is over.
create function pg_temp.commit()
    returns void
    language sql
as $$
    update rag.documents set updated_at = now() - interval '1 second'
$$;

create temporary view numbers as
select
    p.tenant,
    p.model,
    p.embedded,
    p.waiting,
    p.leased,
    p.failed
from rag.progress() as p;

-- rag.progress
select is_empty('select * from rag.progress()', 'where nothing was put there is no progress');
do $$
begin
    for i in 1..4 loop
        perform rag.put('text ' || i, 'text ' || i);
    end loop;
end
$$;
select results_eq(
    'select * from numbers',
    $$ values ('default', 'tiny', 0::bigint, 4::bigint, 0::bigint, 0::bigint) $$,
    'what was put is waiting'
);
select results_eq(
    $$
        select
            p.oldest_waiting between interval '0' and interval '1 minute',
            p.chunks_per_second,
            p.time_left
        from rag.progress() as p
    $$,
    $$ values (true, 0::real, null::interval) $$,
    'for so long; how long it will take is not known yet'
);
do $$
begin
    perform pg_temp.embed(1);
    perform rag.fail_jobs(c.lease_token, array[c.job_id], 'no', permanent => true)
    from rag.claim_jobs('worker', 1) as c;
    perform rag.claim_jobs('worker', 1);
end
$$;
select results_eq(
    'select * from numbers',
    $$ values ('default', 'tiny', 1::bigint, 1::bigint, 1::bigint, 1::bigint) $$,
    'it is waiting, leased, failed or embedded'
);
select results_eq(
    $$
        select
            p.chunks_per_second between 0.01 and 1,
            p.time_left between interval '2 seconds' and interval '200 seconds'
        from rag.progress() as p
    $$,
    $$ values (true, true) $$,
    'two chunks are left, at the rate of what was done'
);
do $$
begin
    update rag.jobs set due_at = now(), lease_token = null where failed_at is null;
    perform pg_temp.embed(1000);
end
$$;
select results_eq(
    'select p.embedded, p.failed, p.oldest_waiting, p.time_left from rag.progress() as p',
    $$ values (3::bigint, 1::bigint, null::interval, interval '0') $$,
    'no time is left when only failures are'
);
do $$
begin
    update rag.completions set completed_at = now() - interval '10 minutes';
    perform rag.put('text 5', 'text 5');
end
$$;
select results_eq(
    'select p.chunks_per_second, p.time_left from rag.progress() as p',
    $$ values (0::real, null::interval) $$,
    'the rate of ten minutes ago is no rate'
);
do $$
begin
    insert into rag.completions (tenant_id, model_id, chunks, completed_at)
    select c.tenant_id, c.model_id, 1, now() - interval '90 minutes'
    from rag.completions as c
    limit 1;
    perform pg_temp.embed(1000);
end
$$;
select is_empty(
    $$ select from rag.completions where completed_at < now() - interval '1 hour' $$,
    'completions are forgotten after an hour'
);
do $$
begin
    perform rag._create_model('second', 3, 'test');
    perform rag.set_tenant('other');
    perform rag.put('text of another tenant', 'theirs');
    perform rag.set_tenant('default');
end
$$;
select results_eq(
    'select * from numbers',
    $$
        values
        ('default', 'tiny', 4::bigint, 0::bigint, 0::bigint, 1::bigint),
        ('other', 'second', 0, 1, 0, 0),
        ('other', 'tiny', 0, 1, 0, 0)
    $$,
    'there is a row for each tenant and model'
);
do $$ begin perform rag.grant_tenant('thl_app', 'other'); perform rag.set_tenant('other'); end $$;
select results_eq(
    $$ select pg_temp.seen('thl_app', 'select tenant || '' '' || model from rag.progress()') $$,
    array['other second', 'other tiny'],
    'an application sees its own tenant'
);
select is_empty(
    $$ select pg_temp.seen('thl_app', 'select error from rag.failures()') $$,
    'and no failure of another'
);
do $$ begin perform set_config('rag.tenant', '', false); end $$;
select results_eq(
    $$ select pg_temp.seen('thl_admin', 'select tenant || '' '' || model from rag.progress()') $$,
    array['default tiny', 'other second', 'other tiny'],
    'an administrator sees all'
);
select results_eq(
    $$ select pg_temp.seen('thl_worker', 'select tenant || '' '' || uri from rag.failures()') $$,
    array['default text 2'],
    'and so does a worker'
);
select throws_ok(
    $$ select pg_temp.seen('thl_nobody', 'select tenant from rag.progress()') $$,
    'RG001', 'no tenant is set', 'who has no tenant is told so'
);

-- rag.wait_for
do $$ begin reset role; perform rag.set_tenant('default'); end $$;
create function pg_temp.wait_for(uri text, timeout interval default '1 minute')
    returns boolean
    language sql
as $$
    select rag.wait_for(d.document_id, wait_for.timeout)
    from rag.documents as d
    where d.uri = wait_for.uri
$$;
do $$ begin perform rag.put('a new text', 'new'); end $$;
select throws_ok(
    $$ select pg_temp.wait_for('new') $$,
    '55000', null, 'nobody can wait for what he has not committed'
);
do $$
begin
    begin
        perform rag.put('put in a subtransaction', 'nested');
    exception
        when division_by_zero then
            null;
    end;
end
$$;
select throws_ok(
    $$ select pg_temp.wait_for('nested') $$,
    '55000', null, 'nor after a subtransaction'
);
do $$ begin perform pg_temp.commit(); end $$;
select is(
    pg_temp.wait_for('new', '0'), false, 'a wait of no time is a question'
);
select is(
    pg_temp.wait_for('new', null), false, 'and so is one without a time'
);
select is(
    pg_temp.wait_for('new', '-1 minute'), false, 'and one that is over before it begins'
);
create temporary table clock (began timestamptz);
insert into clock (began) values (clock_timestamp());
select is(
    pg_temp.wait_for('new', '200 ms'), false, 'a wait in vain ends with false'
);
select ok(
    (
        select clock_timestamp() - c.began between interval '200 ms' and interval '2 seconds'
        from clock as c
    ),
    'after its time'
);
-- A claim has the jobs of one lane.
do $$
begin
    while exists (
        select from rag.jobs as j where j.due_at <= clock_timestamp() and j.failed_at is null
    ) loop
        perform pg_temp.embed(1000);
    end loop;
end
$$;
select is(
    pg_temp.wait_for('new', '0'), true, 'what is embedded needs no wait'
);
select isnt_empty(
    $$ select from rag.jobs as j join rag.models as m using (model_id) where m.name = 'second' $$,
    'although another model, which is not active, has not embedded it'
);
update rag.jobs set failed_at = now(), error = 'no';
update rag.models set is_active = false;
update rag.models set is_active = true
where name = 'second';
update clock set began = clock_timestamp();
select is(
    pg_temp.wait_for('new'), false, 'what has failed for good'
);
select ok(
    (select clock_timestamp() - c.began < interval '2 seconds' from clock as c),
    'is not waited for'
);
select throws_ok(
    'select rag.wait_for(0)', 'P0002', 'document 0 does not exist', 'a document must be there'
);
select throws_ok('select rag.wait_for(null)', 'P0002', null, 'and be named');
select throws_ok(
    $$ select pg_temp.wait_for('theirs') $$,
    'P0002', null, 'another tenant''s document is as good as none'
);

-- rag.status
-- All of them done.
do $$
begin
    perform rag._create_embedding_child(m.model_id, t.partition_id)
    from rag.models as m
    cross join rag.tenants as t;
    insert into rag.embeddings (
        partition_id, tenant_id, chunk_id, model_id, collection_id, embedding
    )
    select c.partition_id, c.tenant_id, c.chunk_id, m.model_id, c.collection_id,
        array_fill(1, array[m.dimensions])::real[]::halfvec
    from rag.chunks as c
    cross join rag.models as m
    on conflict do nothing;
    delete from rag.jobs;
end
$$;
select results_eq(
    'select item from rag.status()',
    array[
        'schema', 'postgres', 'pgvector', 'schema of pgvector', 'model', 'paused',
        'word vectors',
        'cached queries', 'queries waiting', 'tenants', 'partitions', 'tenants to promote',
        'notifications', 'documents', 'chunks',
        'embeddings', 'collections to index anew', 'jobs waiting', 'jobs failed', 'jobs missing',
        'files waiting', 'files failed', 'to be purged', 'last completion'
    ],
    'status has a line for everything'
);
select is_empty(
    $$
        select item, warning from rag.status()
        where
            warning is not null
            -- Old versions, and that nobody has learned them here.
            and item not in ('postgres', 'pgvector', 'word vectors')
    $$,
    'and no warning where all is well'
);
select results_eq(
    $$
        select value from rag.status()
        where item in ('model', 'tenants', 'documents', 'chunks', 'jobs waiting', 'jobs failed')
    $$,
    array['second', '2', '8', '8', '0', '0'],
    'it tells how much there is'
);
do $$ begin perform rag.put('unattended', 'unattended'); end $$;
select is_empty(
    $$ select from rag.status() where item = 'jobs waiting' and warning is not null $$,
    'a job that was just put is no reason to worry'
);
update rag.jobs set due_at = now() - interval '1 hour';
select results_eq(
    $$
        select value, warning ~ '^the oldest has waited for 01:00:..: is an embedder running\?$'
        from rag.status()
        where item = 'jobs waiting'
    $$,
    $$ values ('2', true) $$,
    'one that nobody takes is'
);
do $$
begin
    perform rag.suspend_tenant('default');
end
$$;
select results_eq(
    $$ select value, warning from rag.status() where item = 'jobs waiting' $$,
    $$ values ('0', null::text) $$,
    'but not of a tenant that is suspended'
);
select results_eq(
    $$ select value, warning from rag.status() where item = 'paused' $$,
    $$ values ('1', 'nothing is embedded for tenant default: suspended, rag.resume_tenant()') $$,
    'which it says'
);
do $$
begin
    perform rag.pause_jobs('other');
end
$$;
select results_eq(
    $$ select value, warning from rag.status() where item = 'paused' $$,
    $$
        values (
            '2',
            'nothing is embedded for tenant other: rag.resume_jobs(); '
            'nothing is embedded for tenant default: suspended, rag.resume_tenant()'
        )
    $$,
    'beside what is paused'
);
do $$
begin
    perform rag.resume_tenant('default');
    perform rag.pause_jobs('default');
end
$$;
select results_eq(
    $$ select item, value, warning from rag.status() where item ~ '^jobs (w|h|f)' $$,
    $$
        values
        ('jobs waiting', '0', null), ('jobs held', '2', null), ('jobs failed', '0', null)
    $$,
    'what waits for those is held, and not late'
);
do $$
begin
    perform rag.resume_jobs('default');
    perform rag.resume_jobs('other');
end
$$;
update rag.jobs set failed_at = now(), error = 'no';
select results_eq(
    $$
        select value, warning like 'see rag.failures()%'
        from rag.status()
        where item = 'jobs failed'
    $$,
    $$ values ('2', true) $$,
    'a failure is'
);
create temporary view missing as
select s.value, s.warning is not null as warns
from rag.status() as s
where s.item = 'jobs missing';
select results_eq(
    'select * from missing', $$ values ('0', false) $$,
    'a chunk whose job has failed is not forgotten'
);
do $$
begin
    delete from rag.jobs as j
    using rag.models as m
    where m.model_id = j.model_id and m.name = 'tiny';
end
$$;
select results_eq(
    'select * from missing', $$ values ('1', true) $$,
    'one that has neither an embedding nor a job is'
);
do $$
begin
    insert into rag.backfills (model_id) select m.model_id from rag.models as m;
end
$$;
select results_eq(
    'select * from missing', $$ values ('0', false) $$,
    'but for models that are being queued'
);
do $$
begin
    perform rag._backfill(m.model_id, 1000) from rag.models as m;
end
$$;
select results_eq(
    $$
        select m.value, m.warns, array(
            select o.name::text from rag.jobs as j join rag.models as o using (model_id) order by 1
        )
        from missing as m
    $$,
    $$ values ('0', false, array['second', 'tiny']) $$,
    'which is how what is missing is made good'
);
do $$
begin
    delete from rag.jobs as j
    using rag.models as m
    where m.model_id = j.model_id and m.name = 'tiny';
    update rag.models set dropped_at = now() where name = 'tiny';
end
$$;
select results_eq(
    'select * from missing', $$ values ('0', false) $$,
    'a model that is being dropped needs none'
);
update rag.models set dropped_at = null;
update rag.lexeme_statistics set chunks = chunks + 10000
where (tenant_id, delta_id) = (
    select t.tenant_id, min(s.delta_id)
    from rag.tenants as t
    join rag.lexeme_statistics as s on s.tenant_id = t.tenant_id and s.lexeme = ''
    where t.name = 'default'
    group by t.tenant_id
)
and lexeme = '';
select results_eq(
    $$
        select value, warning ~ '^default has 10\d{3} chunks in a shared partition'
        from rag.status()
        where item = 'tenants to promote'
    $$,
    $$ values ('1', true) $$,
    'a tenant that has outgrown the shared partitions is told'
);
select results_eq(
    $$
        select rag._notification_warning(u.usage) ~ '^some session listens'
        from unnest('{0,0.1,0.11,1}'::float8[]) as u (usage)
    $$,
    $$ values (null::boolean), (null), (true), (true) $$,
    'a queue of notifications that fills up is a reason to worry'
);
select results_eq(
    $$ select value, warning from rag.status() where item = 'notifications' $$,
    $$ values ('0 % of the queue', rag._notification_warning(pg_notification_queue_usage())) $$,
    'and status looks at it'
);
update rag.models set is_active = false;
select results_eq(
    $$ select value, warning like 'no model is active%' from rag.status() where item = 'model' $$,
    $$ values (null::text, true) $$,
    'and so is a database without a model'
);
select results_eq(
    $$ select pg_temp.seen('thl_admin', 'select item from rag.status() limit 1') $$,
    array['schema'], 'administrators may ask'
);
select throws_ok(
    $$ select pg_temp.seen('thl_nobody', 'select item from rag.status()') $$,
    '42501', null, 'who is no tenant may not'
);
do $$ begin perform rag.grant_tenant('thl_app', 'other'); perform rag.set_tenant('other'); end $$;
select results_eq(
    $$ select pg_temp.seen('thl_app', 'select item || '' '' || value from rag.status()
        where item not in (''model'', ''word vectors'', ''last completion'')') $$,
    array[
        'paused 0', 'cached queries 0', 'queries waiting 0', 'documents 1', 'chunks 1',
        'embeddings 2',
        'collections to index anew 0', 'jobs waiting 0', 'jobs failed 0', 'jobs missing 0',
        'files waiting 0', 'files failed 0', 'to be purged 0'
    ],
    'a tenant is told of his own'
);

-- Versions of pgvector
select results_eq(
    $$
        select v.version, rag._pgvector_warning(v.version) ~ 'CVE-2026-3172'
        from unnest(array['0.8.0', '0.8.1', '0.8', '0.7.4', '0.8.1-2.el9']) as v (version)
    $$,
    $$
        values ('0.8.0', true), ('0.8.1', true), ('0.8', true), ('0.7.4', true),
        ('0.8.1-2.el9', true)
    $$,
    'pgvector below 0.8.2 can leak'
);
select results_eq(
    $$
        select v.version, rag._pgvector_warning(v.version) ~ '^pgvector below 0.8.4: vacuum'
        from unnest(array['0.8.2', '0.8.3', '0.8.3beta1']) as v (version)
    $$,
    $$ values ('0.8.2', true), ('0.8.3', true), ('0.8.3beta1', true) $$,
    'pgvector below 0.8.4 can damage an index'
);
select results_eq(
    $$
        select rag._pgvector_warning(v.version)
        from unnest(array['0.8.4', '0.8.5', '0.8.10', '0.9.0', '0.10.0', '1.0']) as v (version)
    $$,
    array[null, null, null, null, null, null]::text[],
    'later versions have none of these faults'
);
select is(
    (
        select s.warning
        from rag.status() as s
        where s.item = 'pgvector'
    ),
    (
        select rag._pgvector_warning(e.extversion)
        from pg_extension as e
        where e.extname = 'vector'
    ),
    'status warns of the version that is there'
);

select finish();
rollback;
