-- Adding a model, changing over, going back, dropping, as one session sees it. The change under
-- load is in tests/test_model_change.py.

begin;
select no_plan();

do $$
begin
    delete from rag.models;
    perform rag._create_model('old', 3, 'test', is_active => true);
    perform rag.create_tenant('other');
    perform rag.grant_tenant('postgres', 'other');
    perform rag.set_tenant('default');
end
$$;

-- Claim and complete all that is due, by whatever model.
create function pg_temp.embed(most int default 100)
    returns bigint
    language plpgsql
as $$
declare
    v_stored bigint := 0;
    v_claim record;
begin
    loop
        select
            (array_agg(c.lease_token))[1] as token,
            array_agg(c.job_id) as jobs,
            array_fill(
                array_fill(1::real, array[coalesce(max(c.dimensions), 1)])::vector,
                array[count(*)::int]
            ) as vectors
        into v_claim
        from rag.claim_jobs('worker', least(100, most)) as c;
        exit when v_claim.token is null or v_stored >= most;
        v_stored := v_stored + rag.complete_jobs(v_claim.token, v_claim.jobs, v_claim.vectors);
    end loop;
    return v_stored;
end
$$;

create temporary view numbers as
select p.tenant, p.model, p.embedded, p.waiting, p.failed
from rag.progress() as p;

do $$
begin
    perform rag.put('apples grow on trees', 'a');
    perform rag.put('boats float on water', 'b');
    perform rag.put('clouds float above', 'c');
    perform pg_temp.embed();
    perform rag.set_tenant('other');
    perform rag.put('trees of another tenant', 'o');
    perform pg_temp.embed();
    perform rag.set_tenant('default');
end
$$;

-- What cannot be added.
select throws_ok(
    format('select rag.add_model(%L, %s)', n.name, n.dimensions), '22023', n.message, n.why
)
from (values
    ('', '3', 'invalid model name', 'a name is not empty'),
    (' new', '3', 'invalid model name', 'and has no spaces around it'),
    (repeat('x', 201), '3', 'invalid model name', 'nor is it long'),
    ('new', '0', 'invalid number of dimensions', 'a vector has a dimension'),
    ('new', 'null', 'invalid number of dimensions', 'and their number is known'),
    ('new', '4001', 'invalid number of dimensions', 'more than 4,000 cannot be indexed')
) as n (name, dimensions, message, why);
select throws_ok(
    $$ select rag.add_model('old', 3) $$, '42710', 'model "old" exists already',
    'one name, one model'
);
select throws_ok(
    $$ select rag.add_model('new', 3, provider => ' ') $$, '22023', 'no provider is given',
    'somebody must run it'
);
select throws_ok(
    $$ select rag.add_model('new', 3, settings => '[]') $$, '22023', 'settings is not an object',
    'settings are an object'
);
select throws_ok(
    format('select rag.add_model(%L, 3, settings => %L)', 'new', s.settings),
    '22023', 'settings must not hold a secret', 'no secret: ' || s.settings
)
from unnest(array[
    '{"api_key": "x"}', '{"apiKey": "x"}', '{"API-KEY": 1}', '{"key": "x"}', '{"token": "x"}',
    '{"accessToken": "x"}', '{"http": {"headers": {"Authorization": "x"}}}',
    '{"list": [{"client_secret": "x"}]}', '{"password": "x"}',
    '{"url": "https://me:pass@example.com/v1"}', '{"anything": "sk-abc"}',
    '{"headers": ["Bearer abc"]}'
]) as s (settings);
select throws_ok(
    format('select rag.add_model(%L, 3, %L, %L)', 'new', n.provider, n.settings), '22023',
    n.message, n.message || ': ' || n.settings
)
from (values
    ('ollama', '{}', 'provider "ollama" is called openai here'),
    ('OpenAI', '{}', 'provider "OpenAI" is called openai here'),
    ('azure-openai', '{}', 'provider "azure-openai" is called openai here'),
    (
        'sentence_transformers', '{}',
        'provider "sentence_transformers" is called sentence-transformers here'
    ),
    ('openai', '{}', 'the setting url is missing'),
    ('openai', '{"url": "example.com/v1"}', 'invalid setting "url"'),
    ('openai', '{"url": "ftp://example.com/v1"}', 'invalid setting "url"'),
    ('openai', '{"url": "https://me@example.com/v1"}', 'invalid setting "url"'),
    ('openai', '{"url": "https://example.com/a b"}', 'invalid setting "url"'),
    ('openai', '{"url": "https://"}', 'invalid setting "url"'),
    ('openai', '{"url": 3}', 'invalid setting "url"'),
    ('openai', '{"url": null}', 'invalid setting "url"'),
    ('openai', '{"url": "https://h/v1?api_key=x"}', 'settings must not hold a secret'),
    ('openai', '{"url": "https://h/v1", "tiemout": 3}', 'unknown setting "tiemout"'),
    ('openai', '{"url": "https://h/v1", "timeout": "3"}', 'invalid setting "timeout"'),
    ('openai', '{"url": "https://h/v1", "timeout": 0}', 'invalid setting "timeout"'),
    ('openai', '{"url": "https://h/v1", "encoding": "x"}', 'invalid setting "encoding"'),
    (
        'openai', '{"url": "https://h/v1", "send_dimensions": 1}',
        'invalid setting "send_dimensions"'
    ),
    (
        'openai', '{"url": "https://h/v1", "texts_per_request": 0}',
        'invalid setting "texts_per_request"'
    ),
    ('sentence-transformers', '{"url": "https://h/v1"}', 'unknown setting "url"'),
    ('sentence-transformers', '{"max_tokens": 0}', 'invalid setting "max_tokens"'),
    ('sentence-transformers', '{"model": " "}', 'invalid setting "model"')
) as n (provider, settings, message);
select lives_ok(
    format('select rag._check_settings(%L, %L)', 'openai', s.settings), 'these are valid: '
    || s.settings
)
from unnest(array[
    '{"url": "https://api.openai.com/v1", "model": "text-embedding-3-small", "max_tokens": 8000}',
    '{"url": "https://n.openai.azure.com/openai/deployments/d", "api_version": "2024-10-21"}',
    '{"url": "http://localhost:11434/v1", "model": "nomic-embed-text", "timeout": 0.5}',
    '{"url": "http://[::1]:8080/v1", "texts_per_request": 32, "encoding": "base64"}',
    '{"url": "https://h", "key_header": "x-auth", "send_dimensions": true, "batch_tokens": 9}'
]) as s (settings);
select throws_ok(
    $$ select rag.activate_model('new') $$, 'RG005', 'model "new" does not exist',
    'a model that is not there cannot be activated'
);
select throws_ok(
    format('select %s', c.call), '22023', 'no model is named', 'no model is named: ' || c.call
)
from unnest(array[
    'rag.activate_model(null)', 'rag.drop_model(null)', 'rag.alter_model(null)',
    'rag.estimate_model(null)'
]) as c (call);
select throws_ok(
    'select rag.rollback_model()', '55000', 'there is no model to go back to', 'nor gone back to'
);
select throws_ok(
    $$ select rag.drop_model('new') $$, 'RG005', 'model "new" does not exist', 'nor dropped'
);

-- Side by side.
select results_eq(
    $$ select chunks, chunks_left, bytes, bytes_left > 4 * 4, measured_of, time_left is not null
    from rag.estimate_model('new', 4) $$,
    $$ values (4::bigint, 4::bigint, 0::bigint, true, 'old', true) $$,
    'what it would cost can be told before'
);
select throws_ok(
    $$ select rag.estimate_model('new') $$, 'RG005', null, 'given its dimensions'
);
do $$
begin
    perform rag.add_model(
        'new', 4, 'test', '{"max_tokens": 256, "batch_tokens": 1, "url": "https://h:80/x"}',
        'query: ', 'passage: ', 'r1'
    );
end
$$;
select results_eq(
    'select * from numbers',
    $$ values
    ('default', 'new', 0::bigint, 3::bigint, 0::bigint),
    ('default', 'old', 3, 0, 0),
    ('other', 'new', 0, 1, 0),
    ('other', 'old', 1, 0, 0) $$,
    'everything is queued for the new one'
);
select results_eq(
    'select distinct priority::int from rag.jobs', array[20], 'behind all other work'
);
select is(
    (select m.name from rag.active_model() as m), 'old', 'while the old one serves'
);
select throws_ok(
    $$ select rag.activate_model('new') $$, '55000', 'model "new" is not ready',
    'nobody changes over to a model that has embedded nothing'
);
select throws_ok(
    $$ select rag.activate_model('new', 'default') $$, '55000', null, 'nor does a tenant'
);
do $$ begin perform rag.put('dates are sweet', 'd'); end $$;
select results_eq(
    $$ select m.name, j.priority::int from rag.jobs as j join rag.models as m using (model_id)
    where j.priority = 0 order by m.name $$,
    $$ values ('new', 0), ('old', 0) $$,
    'what is put meanwhile is queued for both, ahead'
);
do $$
begin
    perform rag.fail_jobs(c.lease_token, array[c.job_id], 'no', permanent => true)
    from rag.claim_jobs('worker', 1, models => '{new}') as c;
    perform pg_temp.embed();
end
$$;
select throws_ok(
    $$ select rag.activate_model('new') $$, '55000', null, 'a failed one counts'
);
do $$ begin perform rag.retry_failed(); perform pg_temp.embed(); end $$;
select results_eq(
    $$ select l.name, l.embedded, l.waiting, l.is_active, l.tenants, l.bytes > 0
    from rag.list_models() as l $$,
    $$ values
    ('old', 5::bigint, 0::bigint, true, 2::bigint, true), ('new', 5, 0, false, 0, true) $$,
    'in the end both have everything'
);
select results_eq(
    $$ select chunks, chunks_left, bytes > 0, bytes_left, measured_of, time_left
    from rag.estimate_model('new') $$,
    $$ values (5::bigint, 0::bigint, true, 0::bigint, 'new', interval '0') $$,
    'and nothing is left to be done'
);

-- A text that was just put and waits for both holds nobody up; what only the old one has does.
do $$ begin perform rag.put('eels swim', 'e'); end $$;
select lives_ok(
    $$ select rag._check_coverage(rag._model('new'), null) $$, 'what waits for both is no loss'
);
do $$
begin
    perform rag.complete_jobs(c.lease_token, array[c.job_id], '{"[1,1,1]"}')
    from rag.claim_jobs('worker', models => '{old}') as c;
end
$$;
select throws_ok(
    $$ select rag.activate_model('new') $$, '55000', null, 'what waits for the new one alone is one'
);
select is(rag.activate_model('new', force => true), true, 'who insists may');
select is(rag.rollback_model(), 'old', 'and go back');
do $$ begin perform pg_temp.embed(); end $$;

-- A poison text that neither can embed.
do $$
begin
    perform rag.put('poison', 'p');
    for i in 1..2 loop
        perform rag.fail_jobs(c.lease_token, array[c.job_id], 'no', permanent => true)
        from rag.claim_jobs('worker') as c;
    end loop;
end
$$;
select is((select count(*)::int from rag.failures()), 2, 'a poison text has failed with both');

-- One tenant first.
select is(rag.activate_model('new', 'other'), true, 'a tenant may go first');
select is(rag.activate_model('new', 'other'), false, 'again is a no-op');
select is((select m.name from rag.active_model() as m), 'old', 'another one stays');
do $$ begin perform rag.set_tenant('other'); end $$;
select results_eq(
    'select name, dimensions, query_prefix, document_prefix, revision from rag.active_model()',
    $$ values ('new', 4, 'query: ', 'passage: ', 'r1') $$, 'he has the new one'
);
select results_eq(
    $$ select uri, similarity > 0.99
    from rag.search('trees', embedding => '[1,1,1,1]', mode => 'semantic') $$,
    $$ values ('o', true) $$, 'searches with its vectors'
);
select throws_ok(
    $$ select rag.search('trees', embedding => '[1,1,1]') $$, '22023',
    'the embedding has the wrong number of dimensions', 'and with no others'
);
select throws_ok(
    $$ select rag.drop_model('new') $$, '55000', 'model "new" is in use', 'it cannot be dropped'
);
do $$ begin perform rag.prepare_query('a question'); end $$;
select results_eq(
    $$ select m.name from rag.queries as q join rag.models as m using (model_id) $$,
    array['new'], 'his questions wait for it'
);
select is_empty($$ select rag.claim_queries('w', 'old') $$, 'not for the other one');
do $$
begin
    perform rag.prepare_query('a question');
    perform rag.complete_queries(c.lease_token, array[c.query_id], '{"[1,0,0,0]"}')
    from rag.claim_queries('w', 'new') as c;
end
$$;
select is(
    (select s.query_embedding from rag.search('a question', 1) as s), 'cached',
    'and are answered by it'
);
select is(rag.rollback_model('other'), 'old', 'a tenant goes back by himself');
select isnt(
    (select s.query_embedding from rag.search('a question', 1) as s), 'cached',
    'to a model that has not been asked this'
);
select is(rag.rollback_model('other'), 'new', 'and forth');
select is(rag.activate_model(null, 'other'), true, 'and may follow the database again');
select throws_ok(
    $$ select rag.rollback_model('default') $$, '55000', 'the tenant has no model to go back to',
    'who never changed has nowhere to go back to'
);
do $$ begin perform rag.set_tenant('default'); end $$;

-- The database.
select is(rag.activate_model('new'), true, 'the database changes over');
select is(rag.activate_model('new'), false, 'once');
select results_eq(
    'select name, is_active, tenants from rag.list_models()',
    $$ values ('new', true, 2::bigint), ('old', false, 0) $$, 'all tenants with it'
);
do $$ begin perform rag.put('figs are sweet', 'f'); perform pg_temp.embed(); end $$;
select is(rag.rollback_model(), 'old', 'it goes back');
select results_eq(
    $$ select uri from rag.search('figs', embedding => '[1,1,1]', mode => 'semantic', k => 20)
    order by uri $$,
    array['a', 'b', 'c', 'd', 'e', 'f'], 'to all that was put meanwhile'
);
select is(rag.rollback_model(), 'new', 'and forth');
select is(
    (select d.tables_left from rag.drop_model('old') as d), 0, 'the old one is dropped'
);
select is(to_regclass('rag_data.embeddings_m2'), null, 'with its tables');
select is_empty($$ select from numbers where model = 'old' $$, 'nothing of it is left');
select is((select count(*)::int from rag.failures()), 1, 'nor its failures');
select throws_ok(
    'select rag.rollback_model()', '55000', null, 'nobody can go back to it'
);
select throws_ok(
    $$ select rag.drop_model('new') $$, '55000', 'model "new" is in use',
    'the active one stays'
);

-- Two changes, and the model between them is gone: nobody goes back further than he meant to.
do $$
begin
    perform rag.add_model('second', 3, 'test');
    perform rag.add_model('third', 3, 'test');
    perform pg_temp.embed();
    perform rag.activate_model('second', 'other');
    perform rag.activate_model('third', 'other');
    perform rag.activate_model('second', force => true);
    perform rag.activate_model('third', force => true);
    perform rag.drop_model('second');
end
$$;
select throws_ok(
    'select rag.rollback_model()', '55000', 'the model to go back to was dropped',
    'the model before this one was dropped, the one before that is not meant'
);
select throws_ok(
    $$ select rag.rollback_model('other') $$, '55000', 'the tenant has no model to go back to',
    'nor does a tenant go back to the database''s model, which he did not have'
);
do $$
begin
    perform rag.activate_model(null, 'other');
    perform rag.activate_model('new', force => true);
    perform rag.drop_model('third');
end
$$;

-- Queued in parts: all waits from the beginning, and what is deleted meanwhile never is.
do $$
begin
    perform rag.put_many((
        select jsonb_agg(jsonb_build_object('content', 'text ' || n, 'uri', 'u' || n))
        from generate_series(1, 60) as n
    ));
    perform pg_temp.embed();
    perform rag._create_model('parts', 2, 'test');
    insert into rag.backfills (model_id)
    select m.model_id from rag.models as m where m.name = 'parts';
    perform rag._backfill(m.model_id, 30) from rag.models as m where m.name = 'parts';
end
$$;
select results_eq(
    $$ select tenant, waiting from numbers where model = 'parts' $$,
    $$ values ('default', 67::bigint), ('other', 1) $$,
    'what is not queued yet is waiting, too'
);
select is(
    (select count(*)::int from rag.jobs as j join rag.models as m using (model_id)
    where m.name = 'parts'),
    30, 'although it is not in the queue'
);
select throws_ok(
    $$ select rag.activate_model('parts') $$, '55000', 'model "parts" is not ready',
    'it cannot be activated'
);
select isnt(rag.next_due(), null, 'there is work to be done');
do $$ begin perform rag.delete('u60'); end $$;
select is(pg_temp.embed(), 67::bigint, 'claims queue the rest');
select is_empty('select from rag.backfills', 'until all is');
select is(rag.activate_model('parts'), true, 'then it is ready');

-- Dropped in parts.
do $$
begin
    update rag.tenants set model_id = null, previous_model_id = null;
    update rag.models set dropped_at = now() where name = 'new';
    perform rag.put('grapes are sweet', 'g');
end
$$;
select results_eq(
    'select distinct m.name from rag.jobs as j join rag.models as m using (model_id) '
    'where j.failed_at is null',
    array['parts'], 'nothing is queued for a model that is being dropped'
);
select results_eq('select name from rag.list_models()', array['parts'], 'nor is it listed');
select lives_ok($$ select rag.drop_model('new') $$, 'the last part can be dropped');
select is((select count(*)::int from rag.models), 1, 'and then it is gone');

select * from finish();
rollback;
