-- Passages that were too long for their model: stored with the embedding, and listed.

begin;
select no_plan();

do $$
begin
    delete from rag.models;
    perform rag._create_model('tiny', 2, 'test', is_active => true);
    perform rag.create_tenant('other');
    perform rag.grant_tenant('postgres', 'other');
    perform rag.set_tenant('default');
    perform rag.put('one', 'a');
    perform rag.put('two', 'b');
    perform rag.put('three', 'c');
end
$$;

create temporary table claim as
select
    c.lease_token,
    array_agg(c.job_id order by c.content) as jobs,
    array_fill('[1,1]'::vector, array[3]) as vectors
from rag.claim_jobs('worker') as c
group by c.lease_token;

select throws_ok(
    format(
        'select rag.complete_jobs(c.lease_token, c.jobs, c.vectors, %L) from claim as c', n.tokens
    ), '22023', 'invalid truncated_tokens', 'not ' || n.tokens
)
from unnest(array['{0,0}', '{}', '{0,0,0,0}', '{0,-1,null}']) as n (tokens);
-- In the order of their content: one, three, two.
select is(
    (select rag.complete_jobs(c.lease_token, c.jobs, c.vectors, '{0,7,null}') from claim as c), 3,
    'given with the vectors'
);
select results_eq(
    $$ select d.uri, e.truncated_tokens from rag.embeddings as e
    join rag.chunks as c using (tenant_id, chunk_id)
    join rag.documents as d using (tenant_id, document_id) order by d.uri $$,
    $$ values ('a', 0), ('b', null), ('c', 7) $$, 'it is stored with them'
);
select results_eq(
    'select tenant, model, uri, ordinal, truncated_tokens from rag.truncations()',
    $$ values ('default', 'tiny', 'c', 0, 7) $$, 'and listed'
);
select results_eq(
    $$ select t.uri from rag.documents as d cross join lateral rag.truncations(d.document_id) as t
    order by t.uri $$,
    array['c'], 'also of one document'
);
do $$ begin perform rag.put('three', 'the same text again'); end $$;
select results_eq(
    'select uri, truncated_tokens from rag.truncations() order by uri',
    $$ values ('c', 7), ('the same text again', 7) $$, 'the same text has the same embedding'
);
select is(
    (select rag.complete_jobs(c.lease_token, array[c.job_id], '{"[1,1]"}')
    from (select rag.put('four', 'd')) as p (d)
    cross join lateral rag.claim_jobs('worker') as c),
    1, 'a worker that does not know need not say'
);

-- Whose they are.
do $$
begin
    perform rag.set_tenant('other');
    perform rag.put('five', 'o');
    perform rag.complete_jobs(c.lease_token, array[c.job_id], '{"[1,1]"}', '{3}')
    from rag.claim_jobs('worker') as c;
end
$$;
select results_eq(
    'select tenant, uri from rag.truncations() order by tenant, uri',
    $$ values ('default', 'c'), ('default', 'the same text again'), ('other', 'o') $$,
    'an administrator sees all'
);
create role trunc_app login in role rag_app;
do $$ begin perform rag.grant_tenant('trunc_app', 'other'); end $$;
set local role trunc_app;
create temporary table his as select t.tenant, t.uri from rag.truncations() as t;
reset role;
select results_eq('select * from his', $$ values ('other', 'o') $$, 'a tenant his own');

-- What is gone is not listed.
do $$
begin
    perform rag.set_tenant('default');
    perform rag.delete('c');
    perform rag.delete('the same text again');
end
$$;
select is_empty(
    $$ select from rag.truncations() as t where t.tenant = 'default' $$, 'gone with its passage'
);

select * from finish();
rollback;
