-- Runs, documents with vectors of their own, and passages like another; the move from Chroma as a
-- whole is in tests/test_chroma.py.

begin;
select plan(54);

create function pg_temp.direction(x real, y real)
    returns vector
    language sql
as $$ select (array[x, y] || array_fill(0::real, array[382]))::vector $$;

-- pgTAP runs as whoever acts.
do $$ begin execute format('grant usage on schema %I to public', (
    select n.nspname from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace
    where p.proname = 'throws_ok' limit 1
)); end $$;
create role trn_other login in role rag_app;
do $$
begin
    perform rag.create_tenant('trn');
    perform rag.create_tenant('trn_other');
    perform rag.grant_tenant('trn_other', 'trn_other');
    perform rag.set_tenant('trn');
    perform rag.put('mine', uri => 'taken');
end
$$;
create temporary table run as select rag.begin_run('move', 'a source', '{"made": ["moved"]}') as id;
grant select on run to trn_other;

-- Documents with vectors ------------------------------------------------------------------------

create temporary table given as
select '[
    {"uri": "east", "content": "east", "metadata": {"n": 1}},
    {"uri": "taken", "content": "not mine"},
    {"uri": "north", "content": "north"},
    {"uri": "later", "content": "later"}
]'::jsonb as documents;
select results_eq(
    $$
        select i.uri || ' ' || i.status
        from run, given, rag.import_documents(
            run.id, given.documents,
            array[
                pg_temp.direction(1, 0), pg_temp.direction(1, 1), pg_temp.direction(0, 2), null
            ],
            'all-MiniLM-L6-v2'
        ) as i
    $$,
    $$ values ('east inserted'), ('taken taken'), ('north inserted'), ('later inserted') $$,
    'what is free is brought, what is taken stays'
);
select is(
    (select d.content from rag.documents as d where d.uri = 'taken'), 'mine', 'as it was'
);
select results_eq(
    $$
        select d.uri
        from rag.jobs as j
        join rag.chunks as c using (tenant_id, chunk_id)
        join rag.documents as d using (tenant_id, document_id)
        where d.tenant_id = (select x.tenant_id from rag._context() as x)
        order by 1
    $$,
    $$ values ('later'), ('taken') $$,
    'what came without a vector waits for one'
);
select results_eq(
    $$
        select round(
            rag.cosine_similarity(e.embedding::vector, pg_temp.direction(0, 1))::numeric, 3
        )
        from rag.embeddings as e
        join rag.chunks as c using (tenant_id, chunk_id)
        where c.content in ('east', 'north')
        order by c.content
    $$,
    $$ values (0.000), (1.000) $$,
    'a vector is that which was given'
);
select results_eq(
    $$
        select i.status
        from run, given, rag.import_documents(run.id, given.documents) as i
    $$,
    $$ values ('present'), ('taken'), ('present'), ('present') $$,
    'again changes nothing'
);
select results_eq(
    $$
        select d.uri || ' ' || d.action
        from rag.run_documents as d, run
        where d.run_id = run.id
        order by 1
    $$,
    $$ values ('east inserted'), ('later inserted'), ('north inserted') $$,
    'the run knows what it brought'
);

-- What is refused -------------------------------------------------------------------------------

select throws_ok(
    format('select * from run, rag.import_documents(run.id, %s)', n.arguments),
    n.state, null, n.what
)
from (values
    ('''[{"uri": "a", "content": "a"}]'', array[''[1,2]''::vector], ''all-MiniLM-L6-v2''',
        '22023', 'a vector of other dimensions'),
    ('''[{"uri": "a", "content": "a"}]'', array[pg_temp.direction(0, 0)], ''all-MiniLM-L6-v2''',
        '22023', 'a vector without direction'),
    ('''[{"uri": "a", "content": "a"}]'', array[pg_temp.direction(1, 0)]', '22023', 'no model'),
    ('''[{"uri": "a", "content": "a"}]'', null, ''all-MiniLM-L6-v2''', '22023', 'no vectors'),
    ('''[{"uri": "a", "content": "a"}]'', array[]::vector[], ''all-MiniLM-L6-v2''', '22023',
        'fewer vectors than documents'),
    ('''[{"uri": "a", "content": "a"}]'', array[pg_temp.direction(1, 0)], ''none''', 'RG005',
        'an unknown model'),
    ('''[{"uri": "a", "content": ""}]''', '22023', 'an empty text'),
    ('''[{"uri": "a", "content": "a", "x": 1}]''', '22023', 'an unknown key'),
    ('''[{"uri": "a", "content": "a"}]'', collection => ''none''', 'RG003', 'an unknown collection')
) as n (arguments, state, what);
select throws_ok(
    $$ select * from rag.import_documents(-1, '[{"uri": "a", "content": "a"}]') $$, 'P0002', null,
    'an unknown run'
);
select throws_ok(
    $$ select rag.begin_run('', 'x') $$, '22023', 'invalid run', 'a run has a kind'
);
select throws_ok(
    $$ select rag.end_run(run.id, 'done') from run $$, '22023', null, 'and ends in a known state'
);
select throws_ok(
    $$ select * from rag.rollback_run(0, 0) $$, '22023', 'invalid batch', 'a batch has something'
);

-- Passages like another -------------------------------------------------------------------------

do $$
begin
    perform from run, rag.import_documents(
        run.id, '[{"uri": "north-east", "content": "north-east"}, {"uri": "twin", "content": "x"}]',
        array[pg_temp.direction(1, 1), pg_temp.direction(1, 0)], 'all-MiniLM-L6-v2'
    );
end
$$;
create temporary table east as
select c.chunk_id from rag.chunks as c where c.content = 'east';
grant select on east to trn_other;
select results_eq(
    $$
        select s.rank || ' ' || s.uri || ' ' || round(s.similarity::numeric, 2)
        from east, rag.find_similar(east.chunk_id) as s
        order by s.rank
    $$,
    $$ values ('1 twin 1.00'), ('2 north-east 0.71'), ('3 north 0.00') $$,
    'the nearest first, without itself'
);
select is(
    (select count(*) from east, rag.find_similar(east.chunk_id, 1) as s), 1::bigint, 'k of them'
);
select throws_ok(
    $$
        select * from rag.find_similar((select c.chunk_id from rag.chunks as c
        where c.content = 'later'))
    $$,
    'P0002', null, 'one that waits for its vector is like nothing yet'
);
set local role trn_other;
select rag.set_tenant('trn_other');
select throws_ok(
    $$ select * from east, rag.find_similar(east.chunk_id) $$, 'P0002', null,
    'to another tenant the passage is not there'
);
select is_empty($$ select * from rag.runs $$, 'nor the run');
select throws_ok(
    $$ select * from run, rag.rollback_run(run.id) $$, 'P0002', null, 'nor can he take it back'
);
reset role;
select rag.set_tenant('trn');

-- The way back ----------------------------------------------------------------------------------

do $$ begin perform rag.end_run(run.id, 'completed', '{"n": 5}') from run; end $$;
select is(
    (select r.state || ' ' || r.report::text from rag.runs as r), 'completed {"n": 5}', 'it ends'
);
do $$ begin perform rag.create_collection('moved'); end $$;
-- In the transaction of the import.
do $$ begin perform rag.put('anew', uri => 'east'); end $$;
select is(
    (select row(b.removed, b.kept)::text from run, rag.rollback_run(run.id, 2) as b), '(1,1)',
    'a batch goes, but for what was put anew since then'
);
select is((select r.state from rag.runs as r), 'completed', 'not all of it yet');
select is(
    (select sum(b.removed)::int from run, rag.rollback_run(run.id) as b), 3, 'then the rest'
);
select is((select r.state from rag.runs as r), 'rolled back', 'and it is rolled back');
select results_eq(
    $$ select d.uri from rag.documents as d order by 1 $$, $$ values ('east'), ('taken') $$,
    'what the run did not bring stays'
);
select is(
    (select count(*) from rag.embeddings as e join rag.chunks as c using (tenant_id, chunk_id)),
    0::bigint, 'vectors go with their passages'
);
select is_empty(
    $$ select c.name from rag.collections as c where c.name = 'moved' $$,
    'a collection it made goes'
);
select is(
    (select d.content from rag.documents as d where d.uri = 'east'), 'anew',
    'what was put anew, too'
);

-- Past versions go with what the run put; what hangs on a collection keeps it.
do $$
declare
    v_run bigint := rag.begin_run(
        'move', 'another', '{"made": ["default", "versions", "uploads", "evals", "empty", "past"]}'
    );
begin
    perform rag.create_collection(n.name)
    from unnest('{versions,uploads,evals,empty,past}'::text[]) as n (name);
    perform rag.set_retention('versions', 3, null, null);
    perform rag.put('one', uri => 'v', collection => 'versions');
    perform rag.put('two', uri => 'v', collection => 'versions');
    perform rag.note_run(v_run, '[{"uri": "v", "action": "inserted"}]', 'versions');
    perform rag.upload('a.md', 'x', collection => 'uploads');
    perform rag.set_retention('past', 1, null, interval '1 day');
    perform rag.put('restorable', uri => 'p', collection => 'past');
    perform rag.delete('p', 'past');
    insert into rag.eval_sets (tenant_id, collection_id, name)
    select c.tenant_id, c.collection_id, 'judged'
    from rag.collections as c
    where c.name = 'evals' and c.tenant_id = (select x.tenant_id from rag._context() as x);
    perform rag.delete(d.uri) from rag.documents as d where d.uri in ('east', 'taken');
    perform rag.rollback_run(v_run);
end
$$;
select is_empty(
    $$ select from rag.past_documents as p where p.uri = 'v' $$, 'past versions go with it'
);
select results_eq(
    $$
        select c.name
        from rag.collections as c
        where c.tenant_id = (select x.tenant_id from rag._context() as x)
        order by 1
    $$,
    $$ values ('default'), ('evals'), ('past'), ('uploads') $$,
    'collections that somebody uses stay, and the default one'
);

-- What is no array of documents.
select throws_ok(
    format('select * from rag.%s(-1, %L%s)', f.name, n.documents, f.more), '22023', n.message,
    f.name || ': ' || coalesce(n.documents, 'null')
)
from (values ('note_run', ', ''default'''), ('import_documents', '')) as f (name, more)
cross join (values
    (null, 'documents is not an array'),
    ('{}', 'documents is not an array'),
    ('[7]', 'a document has no uri'),
    ('[{"uri": null, "content": "a", "action": "deleted"}]', 'a document has no uri'),
    ('[{"content": "a", "action": "deleted"}]', 'a document has no uri'),
    ('[{"uri": "", "content": "a"}]', 'a document has no uri'),
    (
        '[{"uri": "a", "content": "a"}, {"uri": "a", "content": "a"}]',
        'two documents have the same uri'
    )
) as n (documents, message);
select throws_ok(
    $$ select rag.note_run(-1, '[{"uri": "a", "action": "x"}]', 'default') $$, '22023',
    'invalid action', 'an action that is none'
);
select throws_ok(
    $$ select rag.note_run(-1, '[{"uri": "a"}]', 'default') $$, '22023', 'invalid action',
    'nor none at all'
);

do $$
begin
    perform rag.put('mine', uri => 'taken');
    perform rag.note_run(
        rag.begin_run('sync', '/folder'), '[{"uri": "taken", "action": "deleted"}]', 'default'
    );
end
$$;
select throws_ok(
    $$ select * from rag.rollback_run((select max(r.run_id) from rag.runs as r)) $$, '55000', null,
    'what a run has deleted it cannot bring back'
);
do $$ begin perform rag.begin_run('sync', '/folder'); end $$;
select results_eq(
    $$ select r.state from rag.runs as r where r.kind = 'sync' order by r.run_id $$,
    $$ values ('interrupted'), ('running') $$,
    'of a source one run is at work: the one before was killed'
);

select * from finish();
rollback;
