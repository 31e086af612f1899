-- Who may be which tenant: a story for each actor. What needs a commit or a second session is in
-- tests/test_isolation.py.

begin;
select plan(109);

-- pgTAP runs as whoever acts.
do $$ begin execute format('grant usage on schema %I to public', (
    select n.nspname from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace
    where p.proname = 'throws_ok' limit 1
)); end $$;

create role ttn_admin login in role rag_admin;
create role ttn_alice login in role rag_app;
create role ttn_bob login in role rag_app;
create role ttn_service login in role rag_app;
create role ttn_nobody login in role rag_app;
create role ttn_worker login in role rag_worker;
create role ttn_stranger login;
create role "ttn ""O'Brien"" %s" login in role rag_app;

-- Rows of a tenant in every table that has a tenant_id: found in the catalog, so that a table to
-- come is not forgotten.
create function pg_temp.rows_of(tenant int)
    returns table (name text, n bigint)
    language plpgsql
as $$
declare
    v_table regclass;
begin
    for v_table in
        select c.oid
        from pg_class as c
        join pg_attribute as a
            on a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped
        where
            c.relnamespace in ('rag'::regnamespace, 'rag_data'::regnamespace)
            and c.relkind in ('r', 'p')
            and not c.relispartition
        order by c.oid::regclass::text
    loop
        name := v_table;
        execute format('select count(*) from %s where tenant_id = $1', v_table)
        into n using tenant;
        if n > 0 then
            return next;
        end if;
    end loop;
end
$$;

-- The administrator creates and grants ----------------------------------------------------------

select lives_ok('set local role ttn_admin', 'the administrator comes');
select is(
    pg_typeof(rag.create_tenant('acme'))::text, 'integer', 'he creates a tenant and gets its id'
);
select lives_ok($$ select rag.create_tenant('globex') $$, 'and a second');
select throws_ok(
    $$ select rag.create_tenant('acme') $$, '42710', null, 'a name is given once'
);
select throws_ok(
    format('select rag.create_tenant(%L)', n.name), '22023', null, 'no name is: ' || n.what
)
from (values
    (null, 'null, by name'), ('', 'empty'), (' ', 'a space'), ('a ', 'a space behind'),
    (' a', 'a space before'), (repeat('x', 201), '201 characters')
) as n (name, what);
select lives_ok(
    format('select rag.create_tenant(%L)', n.name), 'a name may be: ' || left(n.name, 20)
)
from (values
    (repeat('x', 200)), ('Ünïcode 株式会社 🦊'), ('"; drop schema rag; --'),
    ('O''Brien %s %I')
) as n (name);
select lives_ok($$ select rag.grant_tenant('ttn_alice', 'acme') $$, 'he grants it to a role');
select lives_ok($$ select rag.grant_tenant('ttn_alice', 'acme') $$, 'twice is no error');
select lives_ok($$ select rag.grant_tenant('ttn_bob', 'globex') $$, 'the other to another');
select lives_ok($$ select rag.grant_all_tenants('ttn_service') $$, 'and all to a service');
select lives_ok(
    $$ select rag.grant_tenant('ttn "O''Brien" %s', 'O''Brien %s %I') $$,
    'names of roles and tenants are taken as they are'
);
select throws_ok(
    format('select rag.grant_tenant(%L, ''acme'')', n.name), n.state, null, 'no role: ' || n.what
)
from (values
    ('ttn_missing', '42704', 'one that is not there'), ('', '42704', 'the empty name'),
    ('public', '42704', 'PUBLIC, which would be everybody'), ('TTN_ALICE', '42704', 'upper case'),
    (null, '22023', 'null')
) as n (name, state, what);
select throws_ok(
    $$ select rag.revoke_tenant(null, 'acme') $$, '22023', null, 'nor is it taken from null'
);
select throws_ok(
    format('select rag.grant_tenant(''ttn_alice'', %L)', n.name), 'RG002', null,
    'no tenant: ' || n.what
)
from (values ('missing', 'one that is not there'), ('ACME', 'upper case')) as n (name, what);
select throws_ok(
    format('select %s', n.call), '22023', 'no tenant is given', 'null is refused: ' || n.call
)
from (values
    ('rag.grant_tenant(''ttn_alice'', null)'), ('rag.revoke_tenant(''ttn_alice'', null)'),
    ('rag.create_tenant(null)'), ('rag.drop_tenant(null)'), ('rag.set_quota(null)'),
    ('rag.suspend_tenant(null)'), ('rag.resume_tenant(null)')
) as n (call);
select throws_ok(
    $$ select rag.drop_tenant('missing') $$, 'RG002', null, 'what is not there is not dropped'
);
select throws_ok(
    $$ select count(*) from rag.documents $$, '42501', null, 'the administrator reads no document'
);
select throws_ok(
    $$ select rag.put('x') $$, '42501', null, 'and puts none'
);
reset role;

-- Alice is acme ---------------------------------------------------------------------------------

set local role ttn_alice;
select throws_ok(
    $$ select rag.current_tenant() $$, 'RG001', null,
    'with nothing set she is nobody: only ''default'' is implied'
);
select throws_ok($$ select rag.put('x') $$, 'RG001', null, 'nobody puts nothing');
select throws_ok($$ select * from rag.search('x') $$, 'RG001', null, 'nobody finds nothing');
select is_empty($$ select * from rag.documents $$, 'nobody sees no rows, and it is no error');
select is_empty($$ select * from rag.tenants $$, 'not even names of tenants');
select lives_ok($$ select rag.set_tenant('acme') $$, 'she says who she is');
select is(rag.current_tenant(), 'acme', 'and is it');
select is(
    (select c.tenant_id from rag._context() as c), (select t.tenant_id from rag.tenants as t),
    'she sees her own row of rag.tenants, and no other'
);
select lives_ok(
    $$ select rag.put('Acme sells anvils to coyotes.', 'catalogue.md', 'Catalogue') $$,
    'she puts a document'
);
select results_eq(
    $$ select d.uri from rag.documents as d $$, $$ values ('catalogue.md') $$, 'and reads it'
);
select results_eq(
    $$ select s.uri from rag.search('anvils') as s $$, $$ values ('catalogue.md') $$,
    'and finds it'
);
select isnt_empty($$ select * from rag.progress() $$, 'and sees it wait for its embedding');
select throws_ok(
    format('select rag.set_tenant(%L)', n.name), '42501', null, 'she may not be: ' || n.what
)
from (values
    ('globex', 'another tenant'), ('missing', 'one that is not there: the same error'),
    ('', 'the empty name'), ('ACME', 'upper case'), ('default', 'the default')
) as n (name, what);
select throws_ok(
    $$ select rag.set_tenant(null) $$, '22023', 'no tenant is given', 'null is no tenant at all'
);
select is(rag.current_tenant(), 'acme', 'and stays who she was');

-- The setting by hand.
select set_config('rag.tenant', 'globex', true);
select throws_ok(
    $$ select rag.current_tenant() $$, '42501', null, 'the setting by hand gains nothing'
);
select throws_ok($$ select * from rag.search('x') $$, '42501', null, 'no search');
select throws_ok($$ select rag.delete('x') $$, '42501', null, 'no delete');
select throws_ok($$ select * from rag.progress() $$, '42501', null, 'no progress');
select throws_ok(
    $$ select rag.create_collection('x') $$, '42501', null, 'no collection'
);
select is_empty($$ select * from rag.documents $$, 'and direct SQL sees no rows');
select is_empty($$ select * from rag.chunks $$, 'of no table');
select set_config('rag.tenant', '', true);
select throws_ok(
    $$ select rag.current_tenant() $$, 'RG001', null,
    'empty, as a setting reads after its transaction, is not set'
);
select is_empty($$ select * from rag.documents $$, 'and direct SQL sees no rows then either');
select set_config('rag.tenant', 'acme', true);
select is(rag.current_tenant(), 'acme', 'set by hand to what is granted, it is as good as said');

-- is_local: until the transaction ends; a savepoint is the next best thing inside of a test.
savepoint before_local;
select rag.set_tenant('acme', is_local => true);
rollback to savepoint before_local;
select set_config('rag.tenant', '', true);
select lives_ok($$ select rag.set_tenant('acme', true) $$, 'is_local is taken');
select is(rag.current_tenant(), 'acme', 'and holds for the transaction');
select lives_ok($$ select rag.set_tenant('acme', null) $$, 'is_local null is not local');
reset role;

-- Bob is globex, in the same session ------------------------------------------------------------

set local role ttn_bob;
select throws_ok(
    $$ select rag.current_tenant() $$, '42501', null,
    'a setting left behind by another role of the session is checked for this one'
);
select is_empty($$ select * from rag.documents $$, 'and shows him nothing');
select rag.set_tenant('globex');
select is_empty($$ select * from rag.documents $$, 'he sees nothing of acme''s documents');
select is_empty($$ select * from rag.search('anvils') $$, 'nor does he find them');
select is(rag.delete('catalogue.md'), false, 'nor delete them');
select lives_ok(
    $$ select rag.put('Globex digs tunnels.', 'catalogue.md') $$,
    'a uri is his own, whoever else has it'
);
reset role;

-- A role that nothing is granted to, and one that is no member ----------------------------------

set local role ttn_nobody;
select set_config('rag.tenant', '', true);
select throws_ok($$ select rag.current_tenant() $$, 'RG001', null, 'no grant: nobody');
select throws_ok($$ select rag.set_tenant('default') $$, '42501', null, 'nor the default');
reset role;

set local role ttn_stranger;
select throws_ok(
    $$ select rag.set_tenant('acme') $$, '42501', null, 'a stranger may not even ask'
);
select throws_ok($$ select 1 from rag.models $$, '42501', null, 'nor read');
reset role;

set local role ttn_worker;
select throws_ok($$ select rag.set_tenant('acme') $$, '42501', null, 'the worker is no tenant');
select throws_ok(
    format('select 1 from %s', t.name), '42501', null, 'the worker does not read ' || t.name
)
from (values
    ('rag.documents'), ('rag.chunks'), ('rag.embeddings'), ('rag.jobs'), ('rag.tenants')
) as t (name);
reset role;

set local role "ttn ""O'Brien"" %s";
select lives_ok(
    $$ select rag.set_tenant('O''Brien %s %I') $$, 'a role with quotes in its name finds its grant'
);
reset role;

-- The service is everybody, but says whom -------------------------------------------------------

set local role ttn_service;
select set_config('rag.tenant', '', true);
select throws_ok(
    $$ select rag.current_tenant() $$, 'RG001', null,
    'a service that forgot to say whom gets an error, not the default'
);
select is_empty($$ select * from rag.documents $$, 'and no rows, never all');
select lives_ok($$ select rag.set_tenant('acme') $$, 'it is acme');
select results_eq(
    $$ select d.content from rag.documents as d $$, $$ values ('Acme sells anvils to coyotes.') $$,
    'and sees acme''s alone'
);
select lives_ok($$ select rag.set_tenant('globex') $$, 'it is globex');
select results_eq(
    $$ select d.content from rag.documents as d $$, $$ values ('Globex digs tunnels.') $$,
    'and sees globex'' alone'
);
select throws_ok(
    $$ select rag.set_tenant('missing') $$, '42501', null, 'and is not told who is not there'
);
reset role;

-- The default tenant, for whom it was granted to ------------------------------------------------

select rag.grant_tenant('ttn_nobody', 'default');
set local role ttn_nobody;
select set_config('rag.tenant', '', true);
select is(rag.current_tenant(), 'default', 'granted ''default'', it is so without a word');
reset role;
do $$ begin perform rag.revoke_tenant('ttn_nobody', 'default'); end $$;

-- A grant to a group is one for its members.
create role ttn_group;
grant ttn_group to ttn_nobody;
select rag.grant_tenant('ttn_group', 'acme');
set local role ttn_nobody;
select lives_ok($$ select rag.set_tenant('acme') $$, 'members have what their group has');
reset role;

-- Revoked ---------------------------------------------------------------------------------------

set local role ttn_alice;
select rag.set_tenant('acme');
select isnt_empty($$ select * from rag.documents $$, 'Alice is acme');
reset role;
select is(rag.revoke_tenant('ttn_alice', 'acme'), true, 'until her grant is revoked');
select is(rag.revoke_tenant('ttn_alice', 'acme'), false, 'which says whether there was one');
set local role ttn_alice;
select throws_ok(
    $$ select rag.current_tenant() $$, '42501', null, 'it holds at once, in the running session'
);
select is_empty($$ select * from rag.documents $$, 'for direct SQL too');
reset role;
select is(rag.revoke_all_tenants('ttn_service'), true, 'what is for all is revoked for all');
set local role ttn_service;
select throws_ok($$ select rag.set_tenant('globex') $$, '42501', null, 'and the service is nobody');
reset role;

-- A superuser may be every tenant, but has to say which -----------------------------------------

select lives_ok($$ select rag.set_tenant('globex') $$, 'a superuser is any tenant');
select throws_ok(
    $$ select rag.set_tenant('missing') $$, 'RG002', null, 'and is told when there is none'
);
do $$
begin
    perform rag.put('tunnels', 'two', metadata => '{"a": 1}', language => 'german');
    perform rag.create_collection('second');
    perform rag.put('tunnels', 'three', collection => 'second');
end
$$;

-- Dropped ---------------------------------------------------------------------------------------

create temporary table dropped as
select t.tenant_id from rag.tenants as t where t.name = 'globex';

-- One embedding, and one completion, so that there is something of every kind.
do $$
begin
    perform rag.complete_jobs(
        c.lease_token, array_agg(c.job_id), array_agg(array_fill(0.1::real, array[384])::vector)
    )
    from rag.claim_jobs('w') as c
    group by c.lease_token;
    perform rag._fold_statistics(c.tenant_id, c.partition_id, 0) from rag._context() as c;
    perform rag.put('more tunnels', 'four');
    perform rag.set_retention('default', 2, null, null);
    perform rag.put('wider tunnels', 'two');
    perform rag.add_judgements('set', '[{"query": "tunnels", "uri": "four"}]');
    perform rag.evaluate('set');
    perform rag.prepare_query('tunnels');
    perform rag.complete_queries(
        q.lease_token, array_agg(q.query_id),
        array_agg(array_fill(0.1::real, array[384])::vector)
    )
    from rag.claim_queries('w', 'all-MiniLM-L6-v2') as q
    group by q.lease_token;
    perform rag.prepare_query('more tunnels');
    perform rag.upload('plan.md', 'tunnels');
    perform rag.note_run(
        rag.begin_run('sync', '/folder'), '[{"uri": "four", "action": "inserted"}]', 'default'
    );
    perform rag._begin_postings(c.tenant_id) from rag._context() as c;
    perform rag._build_postings(c.tenant_id, c.partition_id) from rag._context() as c;
    perform rag._finish_postings(c.tenant_id) from rag._context() as c;
    -- Only lexemes of a hundred chunks have lists.
    insert into rag.postings (tenant_id, generation, dimension, block, idf, weights)
    select c.tenant_id, 1, 1, 0, 1, '{1:1}/1' from rag._context() as c;
    perform rag.put('tunnels again', 'five');
    perform rag._begin_move('globex');
end
$$;

create temporary table possessions as
select r.* from dropped as d, pg_temp.rows_of(d.tenant_id) as r;
select is_empty(
    $$
        select c.oid::regclass
        from pg_class as c
        join pg_attribute as a
            on a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped
        where
            c.relnamespace = 'rag'::regnamespace
            and c.relkind in ('r', 'p')
            and c.oid::regclass::text not in (select p.name from possessions as p)
    $$,
    'globex has rows in every table'
);
set local role ttn_admin;
create temporary table report as select * from rag.drop_tenant('globex');
reset role;
select is_empty(
    $$ select r.* from dropped as d, pg_temp.rows_of(d.tenant_id) as r $$,
    'drop_tenant leaves nothing in any table'
);
select set_eq(
    $$ select 'rag.' || r.kind, r.rows from report as r $$,
    $$ select p.name, p.n from possessions as p $$,
    'and reports what it removed'
);
select throws_ok(
    $$ select rag.current_tenant() $$, 'RG002', null, 'whoever was the tenant is nobody now'
);
select rag.set_tenant('acme');
select isnt_empty($$ select * from rag.search('anvils') $$, 'the other tenant has all he had');

select * from finish();
rollback;
