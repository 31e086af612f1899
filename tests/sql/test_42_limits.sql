-- Pauses, rate limits, and what a document's state is.

begin;
select no_plan();

do $$
begin
    delete from rag.models;
    perform rag._create_model('tiny', 2, 'local', is_active => true);
    perform rag._create_model('second', 3, 'remote', document_prefix => 'passage: ');
    perform rag.create_tenant('other');
    perform rag.grant_tenant('postgres', 'other');
    perform rag.set_tenant('other');
    perform rag.put('theirs', 'theirs');
    perform rag.set_tenant('default');
    perform rag.put('ours', 'ours');
end
$$;

-- Claim, and give back at once what came; which models and texts.
create function pg_temp.claimed(models text[] default null, batch int default 64)
    returns setof text
    language plpgsql
as $$
declare
    v_model text;
    v_row record;
begin
    -- One model a claim, and which of them is chance.
    for v_model in
        select m.name from rag.models as m where models is null or m.name = any(models)
    loop
        for v_row in select * from rag.claim_jobs('worker', batch, models => array[v_model]) loop
            return next format('%s: %s', v_row.model, v_row.content);
            perform rag.release_jobs(v_row.lease_token);
        end loop;
    end loop;
end
$$;

select bag_eq(
    'select pg_temp.claimed()',
    array['tiny: ours', 'tiny: theirs', 'second: ours', 'second: theirs'],
    'everything can be claimed'
);
select is_empty(
    $$ select rag.claim_jobs('worker', models => '{}') $$, 'but by nobody who can do nothing'
);

-- Pauses.
select throws_ok(
    'select rag.pause_jobs()', '22023', 'neither tenant nor model is given', 'pause what?'
);
select throws_ok(
    $$ select rag.pause_jobs('nobody') $$, 'RG002', null, 'a tenant must be there to be paused'
);
select throws_ok(
    $$ select rag.pause_jobs(model => 'none') $$, 'RG005', null, 'and so must a model'
);
select is(rag.resume_jobs('other'), false, 'nothing is paused');
select is(rag.pause_jobs('other'), true, 'a tenant is paused');
select is(rag.pause_jobs('other'), false, 'once');
select bag_eq(
    'select pg_temp.claimed()', array['tiny: ours', 'second: ours'], 'nothing of his is claimed'
);
select is(rag.pause_jobs(model => 'second'), true, 'a model is paused');
select bag_eq('select pg_temp.claimed()', array['tiny: ours'], 'nothing is claimed for it');
select is(rag.next_due('{second}'), null, 'nor waited for');
select is(rag.pause_jobs('default'), true, 'and now the rest');
select is(rag.next_due(), null, 'all is paused: nothing is due');
select is(
    (select sum(p.waiting)::int from rag.progress() as p), 4, 'although it is waiting'
);
do $$ begin perform rag.put('more of ours', 'more'); end $$;
select is_empty('select pg_temp.claimed()', 'what is put while paused waits, too');
do $$ begin perform rag.delete('more'); end $$;
do $$ begin perform rag.pause_jobs('other', 'tiny'); end $$;
select results_eq(
    'select kind, tenant, model, provider from rag.list_limits()',
    $$ values
    ('pause', 'default', null, null), ('pause', 'other', 'tiny', 'local'),
    ('pause', 'other', null, null), ('pause', null, 'second', 'remote') $$,
    'it can be seen why'
);
do $$ begin perform rag.resume_jobs('other', 'tiny'); end $$;
select is(rag.resume_jobs('other'), true, 'a tenant goes on');
select is(rag.resume_jobs('default'), true, 'and another');
select is(rag.resume_jobs(model => 'second'), true, 'and a model');
select bag_eq(
    'select pg_temp.claimed()',
    array['tiny: ours', 'tiny: theirs', 'second: ours', 'second: theirs'], 'all is as it was'
);
select is(rag.pause_jobs('other', 'tiny'), true, 'a tenant is paused for one model');
select bag_eq(
    'select pg_temp.claimed()', array['tiny: ours', 'second: ours', 'second: theirs'],
    'nothing else is'
);
select is(rag.resume_jobs('other'), false, 'he as a whole is not');
select is(rag.resume_jobs('other', 'tiny'), true, 'for that model he was');

-- Rates.
select throws_ok(
    'select rag.set_rate_limit(requests_per_minute => 1)', '22023',
    'a limit is of a model or of a provider', 'a limit of what?'
);
select throws_ok(
    $$ select rag.set_rate_limit('tiny', 'local', 1) $$, '22023', null, 'of one of them'
);
select throws_ok(
    $$ select rag.set_rate_limit(provider => 'ollama', requests_per_minute => 9) $$, '22023',
    'provider "ollama" is called openai here', 'of a provider that there is'
);
select throws_ok(
    $$ select rag.set_rate_limit('tiny', requests_per_minute => 0) $$, '22023',
    'invalid rate limit', 'nothing at all is no rate'
);
do $$
begin
    perform rag.put('number ' || n) from generate_series(1, 10) as n;
    perform rag.set_rate_limit('second', requests_per_minute => 20);
end
$$;
select results_eq(
    $$ select count(*)::int from generate_series(1, 9) as n
    cross join lateral rag.claim_jobs('worker ' || n, 1, models => '{second}') $$,
    array[2], 'of twenty requests a minute two go at once'
);
select ok(
    rag.next_due('{second}') between clock_timestamp() + interval '2 seconds'
    and clock_timestamp() + interval '4 seconds', 'the next in about three seconds'
);
select results_eq(
    $$ select kind, tenant, model, provider, requests_per_minute, tokens_per_minute,
    next_at = rag.next_due('{second}') from rag.list_limits() $$,
    $$ values ('rate', null::text, 'second', null::text, 20, null::int, true) $$,
    'the limit is listed, with the moment when it allows more'
);
select isnt_empty(
    $$ select rag.claim_jobs('worker', models => '{tiny}') $$, 'other models are free of it'
);
do $$
begin
    update rag.jobs set lease_token = null, due_at = now();
    update rag.rate_limits set filled_at = filled_at - interval '1 minute';
end
$$;
select results_eq(
    $$ select count(*)::int from generate_series(1, 9) as n
    cross join lateral rag.claim_jobs('worker ' || n, 1, models => '{second}') $$,
    array[2], 'after a minute it is two again'
);
do $$
begin
    update rag.jobs set lease_token = null, due_at = now();
    perform rag.set_rate_limit('second');
    perform rag.put_many((
        select jsonb_agg(jsonb_build_object('content', format('text %s %s', n, repeat('x', 390))))
        from generate_series(1, 20) as n
    ));
    -- Texts of about 100 tokens; 360 go at once, and the odd one while this runs.
    perform rag.set_rate_limit(provider => 'remote', tokens_per_minute => 3600);
end
$$;
select ok(
    (
        select sum(rag._text_tokens('passage: ' || c.content)) between 250 and 420
        from generate_series(1, 5) as n
        cross join lateral rag.claim_jobs('worker ' || n, 10, models => '{second}') as c
    ),
    'tokens count for all models of a provider and all workers'
);
do $$
begin
    update rag.jobs set lease_token = null, due_at = now();
    perform rag.set_rate_limit(provider => 'remote', tokens_per_minute => 10);
end
$$;
select is(
    (select count(*)::int from rag.claim_jobs('worker', 10, models => '{second}')), 1,
    'a text that is larger than the limit goes alone'
);
select is_empty(
    $$ select rag.claim_jobs('worker', 10, models => '{second}') $$, 'and is owed for'
);
select ok(
    rag.next_due('{second}') > clock_timestamp() + interval '10 seconds', 'for some time'
);
do $$
begin
    perform rag.set_rate_limit(provider => 'remote', requests_per_minute => 100);
    update rag.jobs set lease_token = null, due_at = now();
    update rag.models set settings = '{"texts_per_request": 10}' where name = 'second';
end
$$;
select is(
    (select count(*)::int from rag.claim_jobs('worker', 64, models => '{second}')), 32,
    'within the limit a claim is a claim'
);
select ok(
    (select l.requests_left between 6 and 6.5 from rag.rate_limits as l),
    'and four requests for a worker that sends ten texts at once'
);
do $$
begin
    perform rag.set_rate_limit('second', requests_per_minute => 100);
    update rag.jobs set lease_token = null, due_at = now();
    update rag.models set provider = 'openai', settings = '{}' where name = 'second';
end
$$;
select is(
    (select count(*)::int from rag.claim_jobs('worker', 64, models => '{second}')), 32,
    'the embedder sends 32 texts at once to a provider by HTTP'
);
select ok(
    (select l.requests_left between 9 and 9.5 from rag.rate_limits as l where l.provider is null),
    'which is one request'
);
do $$
begin
    perform rag.set_rate_limit('second', requests_per_minute => 100);
    update rag.jobs set lease_token = null, due_at = now();
    update rag.models set settings = '{"batch_tokens": 10}' where name = 'second';
end
$$;
-- Twelve short texts of 58 tokens; the one behind them would be above the 100 of ten requests.
select is(
    (select count(*)::int from rag.claim_jobs('worker', 64, models => '{second}')), 12,
    'of texts with many tokens there are fewer in a request'
);
select ok(
    (select l.requests_left between 4 and 4.5 from rag.rate_limits as l where l.provider is null),
    'so these are six'
);
select is(
    (select count(*)::int from rag.claim_jobs('worker', 64, models => '{second}')), 1,
    'a text that is larger goes alone'
);
select ok(
    (select l.requests_left between 3 and 3.9 from rag.rate_limits as l where l.provider is null),
    'and is one'
);
do $$
begin
    perform rag.set_rate_limit('second');
    perform rag.set_rate_limit(provider => 'remote');
    update rag.models set provider = 'remote', settings = '{}' where name = 'second';
end
$$;
select is_empty('select from rag.rate_limits', 'a limit is lifted');

-- States.
create function pg_temp.state(uri text)
    returns text
    language sql
as $$
    select rag.document_state(d.document_id) from rag.documents as d where d.uri = state.uri
$$;
do $$
begin
    delete from rag.jobs;
    perform rag.put('one passage' || repeat(' and more words', 40) || E'\n\nanother passage'
        || repeat(' and other words', 40), 'two', chunk_size => 700, chunk_overlap => 0);
    perform rag.complete_jobs(c.lease_token, array[c.job_id], '{"[1,2]"}')
    from rag.claim_jobs('worker', 1, models => '{tiny}') as c;
end
$$;
select is((select count(*)::int from rag.chunks as c join rag.documents as d using (document_id)
    where d.uri = 'two'), 2, 'a document of two passages');
select is(pg_temp.state('two'), 'waiting', 'waits for the second');
do $$
begin
    perform rag.fail_jobs(c.lease_token, array[c.job_id], 'HTTP 500')
    from rag.claim_jobs('worker', 1, models => '{tiny}') as c;
end
$$;
select is(pg_temp.state('two'), 'waiting', 'also if it will be tried again');
do $$
begin
    update rag.jobs set due_at = now();
    perform rag.fail_jobs(c.lease_token, array[c.job_id], 'no', permanent => true)
    from rag.claim_jobs('worker', 1, models => '{tiny}') as c;
end
$$;
select is(pg_temp.state('two'), 'failed', 'has failed when it has');
do $$
begin
    perform rag.retry_failed();
    perform rag.complete_jobs(c.lease_token, array[c.job_id], '{"[1,2]"}')
    from rag.claim_jobs('worker', 1, models => '{tiny}') as c;
end
$$;
select is(pg_temp.state('two'), 'embedded', 'and is embedded when all is');
select is(rag.document_state(0), null, 'what is not there has no state');

-- Priorities.
do $$
begin
    delete from rag.jobs;
    perform rag.put_many('[{"content": "bulk one"}, {"content": "bulk two"}]');
    perform rag.put('single');
    insert into rag.jobs (tenant_id, chunk_id, model_id, partition_id, content_hash, priority)
    select c.tenant_id, c.chunk_id, m.model_id, c.partition_id, c.content_hash, 20
    from rag.chunks as c
    join rag.documents as d using (tenant_id, document_id)
    join rag.models as m on m.name = 'tiny'
    where d.uri = 'ours';
end
$$;
create temporary table turns (n int, content text);
do $$
begin
    for n in 1..4 loop
        insert into turns
        select n, c.content from rag.claim_jobs('worker', 1, models => '{tiny}') as c;
    end loop;
end
$$;
select results_eq(
    'select content from turns order by n', array['single', 'bulk one', 'bulk two', 'ours'],
    'single puts go before bulk, bulk before what is embedded again'
);

select * from finish();
rollback;
