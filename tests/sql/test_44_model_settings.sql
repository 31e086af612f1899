-- Changing what a model's provider must know.

begin;
select no_plan();

do $$
begin
    delete from rag.models;
    perform rag._create_model('first', 2, 'sentence-transformers', is_active => true);
    perform rag.add_model('remote', 3, 'openai', '{"url": "http://h:1/v1", "timeout": 5}');
    perform rag.put('apples grow on trees', 'a');
    perform rag.prepare_query('what grows on trees?');
end
$$;

create function pg_temp.model()
    returns text
    language sql
return (
    select concat_ws(' ', m.provider, m.settings, m.revision, m.query_prefix, m.document_prefix)
    from rag.models as m
    where m.name = 'remote'
);

select throws_ok(
    $$ select rag.alter_model('none', '{}') $$, 'RG005', 'model "none" does not exist', 'of what?'
);
select is(rag.alter_model('remote'), false, 'nothing is changed by nothing');
select is(rag.alter_model('remote', '{"timeout": 5}'), false, 'nor by what it is');
select is(
    rag.alter_model('remote', '{"url": "http://h:2/v1", "timeout": null}'), true, 'a setting is'
);
select is(pg_temp.model(), 'openai {"url": "http://h:2/v1"}  ', 'and null takes one away');
select throws_ok(
    format('select rag.alter_model(%L, %L)', 'remote', n.settings), '22023', n.message, n.message
)
from (values
    ('[]', 'settings is not an object'),
    ('{"url": null}', 'the setting url is missing'),
    ('{"url": "h"}', 'invalid setting "url"'),
    ('{"urls": "http://h:2/v1"}', 'unknown setting "urls"'),
    ('{"api_key": "x"}', 'settings must not hold a secret')
) as n (settings, message);
select throws_ok(
    $$ select rag.alter_model('remote', provider => 'tei') $$, '22023',
    'provider "tei" is called openai here', 'a provider is checked, too'
);
select throws_ok(
    $$ select rag.alter_model('remote', provider => 'sentence-transformers') $$, '22023',
    'unknown setting "url"', 'and fits its settings'
);

-- Before anything is embedded all may be put right; what a worker has in hands does not count.
create temporary table claim as
select * from rag.claim_jobs('worker', models => '{remote}');
select is(
    rag.alter_model('remote', '{"model": "better", "max_tokens": 8}', document_prefix => 'p: '),
    true, 'a misspelt model is put right'
);
select is(
    (select rag.complete_jobs(c.lease_token, array[c.job_id], '{"[1,1,1]"}') from claim as c), 0,
    'a vector by the old one is not stored'
);
select ok(
    rag.next_due('{remote}') between clock_timestamp() + interval '3 seconds'
    and clock_timestamp() + interval '5 seconds', 'embedders have time to see it'
);
do $$
begin
    update rag.jobs set due_at = clock_timestamp();
    perform rag.complete_jobs(c.lease_token, array[c.job_id], '{"[1,1,1]"}')
    from rag.claim_jobs('worker', models => '{remote}') as c;
    perform rag.complete_jobs(c.lease_token, array[c.job_id], '{"[1,1]"}')
    from rag.claim_jobs('worker', models => '{first}') as c;
end
$$;

-- Afterwards what would make other vectors is refused.
select throws_ok(
    format('select rag.alter_model(%L, %s)', 'remote', c.change), '55000',
    'model "remote" has embeddings already', 'other vectors: ' || c.change
)
from unnest(array[
    $$ '{"model": "best"}' $$, $$ '{"max_tokens": 9}' $$, $$ '{"max_tokens": null}' $$,
    $$ '{"send_dimensions": true}' $$, $$ document_prefix => '' $$, $$ revision => 'r2' $$,
    $$ provider => 'mine' $$
]) as c (change);
select lives_ok(
    $$ select rag.alter_model('remote', '{"url": "https://h/v1", "batch_tokens": 99, "timeout": 9,
    "texts_per_request": 3, "encoding": "base64", "key_header": "x-key", "api_version": "1"}') $$,
    'where and how it is asked is not'
);
select is(
    rag.alter_model('remote', '{"model": "same"}', force => true), true, 'nor is who insists'
);
select is(
    (select count(*)::int from rag.embeddings as e join rag.models as m using (model_id)
    where m.name = 'remote'),
    1, 'its embeddings stay'
);

-- Another query prefix: other vectors of queries, the same of passages.
do $$
begin
    perform rag.complete_queries(c.lease_token, array[c.query_id], '{"[1,0]"}')
    from rag.claim_queries('w', 'first') as c;
end
$$;
select is(
    (select s.query_embedding from rag.search('what grows on trees?', 1) as s), 'cached',
    'a query is known'
);
select is(rag.alter_model('first', query_prefix => 'query: '), true, 'its prefix is changed');
select isnt(
    (select s.query_embedding from rag.search('what grows on trees?', 1) as s), 'cached',
    'it is embedded anew'
);
select is(
    (select c.query_prefix from rag.claim_queries('w', 'first') as c), 'query: ', 'with the new one'
);

select * from finish();
rollback;
