-- The house rules, asked of the catalog: what holds for every function and table, old and new.
-- Each question returns the offenders, so a failing test names them.

begin;
select plan(60);

-- Functions -------------------------------------------------------------------------------------

create temporary view functions as
select
    p.oid,
    p.proname as name,
    p.oid::regprocedure::text as signature,
    p.prokind as kind,
    p.proowner as owner,
    p.prosrc as body,
    -- Without comments, and without strings.
    regexp_replace(p.prosrc, $re$('(?:[^']|'')*')|--[^\n]*$re$, '\1', 'g') as statements,
    regexp_replace(p.prosrc, $re$'(?:[^']|'')*'|--[^\n]*$re$, '', 'g') as code,
    p.provolatile as volatility,
    p.proparallel as parallelism,
    p.prosecdef as is_definer,
    p.proconfig as settings,
    p.prosqlbody is not null as is_atomic,
    p.prolang as language,
    coalesce(p.proacl, acldefault('f', p.proowner)) as acl,
    obj_description(p.oid, 'pg_proc') as comment
from pg_proc as p
where p.pronamespace = 'rag'::regnamespace;

select cmp_ok((select count(*)::int from functions), '>', 50, 'schema rag has its functions');

select is_empty(
    $$ select f.signature from functions as f where coalesce(btrim(f.comment), '') = '' $$,
    'every function has a comment'
);
select is_empty(
    $$
        select f.comment, array_agg(f.signature)
        from functions as f
        group by f.comment
        having count(*) > 1
    $$,
    'no two functions have the same comment'
);
select is_empty(
    $$ select f.signature from functions as f where f.comment !~ '\.$' $$,
    'a comment is made of sentences'
);
select is_empty(
    $$
        select f.signature, f.settings
        from functions as f
        where
            not f.is_atomic
            -- A procedure that commits cannot have one: it names everything with its schema.
            and f.kind <> 'p'
            and not coalesce(f.settings, '{}') && (
                -- The one clause, with the schema that holds pgvector in its middle.
                select array[format('search_path=pg_catalog, %I, pg_temp', n.nspname)]
                from pg_extension as e
                join pg_namespace as n on n.oid = e.extnamespace
                where e.extname = 'vector'
            )
    $$,
    'every function has the pinned search path, pg_temp last, or an atomic body'
);
select is_empty(
    $$ select f.signature from functions as f where f.owner <> 'rag_owner'::regrole $$,
    'rag_owner owns every function'
);
select is_empty(
    $$
        select f.signature
        from functions as f
        cross join aclexplode(f.acl) as a
        where a.grantee = 0
    $$,
    'PUBLIC may execute no function'
);
select is_empty(
    $$
        select f.signature, a.grantee::regrole
        from functions as f
        cross join aclexplode(f.acl) as a
        where a.is_grantable
    $$,
    'nobody may pass on a right to execute'
);
select is_empty(
    $$
        select f.signature, l.lanname
        from functions as f
        join pg_language as l on l.oid = f.language
        where l.lanname not in ('sql', 'plpgsql')
    $$,
    'functions are written in SQL and PL/pgSQL'
);

-- Security definer: each of these was weighed, and is attacked by tests/test_isolation.py.
select set_eq(
    $$ select f.name::text from functions as f where f.is_definer $$,
    array[
        -- tenants
        '_context', '_policy_tenant', '_policy_partition',
        'create_tenant', 'current_tenant', 'drop_tenant',
        '_begin_move', '_move_on', '_pool', 'cancel_move', 'drop_empty_partitions',
        'partition_report', 'maintenance_plan', 'maintenance_report', '_begin_maintenance',
        '_maintain', 'clone_tenant', 'export_tenant', 'import_lines',
        'grant_all_tenants', 'grant_tenant', 'revoke_all_tenants', 'revoke_tenant', 'set_tenant',
        'add_token_key', 'authenticate', 'list_token_keys', 'retire_token_key',
        'audit', 'resume_tenant', 'set_quota', 'suspend_tenant', 'usage',
        -- documents
        'alter_collection', 'create_collection', 'delete', 'put', 'put_many', 'reindex',
        -- files and runs
        'upload', 'retry_upload', 'delete_upload', 'upload_progress', 'claim_uploads',
        'complete_upload', 'fail_upload', 'extend_upload', 'release_upload',
        'begin_run', 'note_run', 'end_run', 'import_documents', 'rollback_run',
        'cite', 'count', 'delete_where', 'drop_collection', 'duplicates', 'get', 'history', 'list',
        'patch_metadata', 'patch_metadata_where', 'purge', 'purge_all', 'rename_collection',
        'restore', 'set_metadata', 'set_record_retention', 'set_retention',
        -- reads no table; its parts are private
        'chunk',
        -- queue
        'claim_jobs', 'complete_jobs', 'extend_lease', 'fail_jobs', 'failures', 'next_due',
        'release_jobs', 'retry_failed', 'worker_awake', 'worker_idle',
        'pause_jobs', 'resume_jobs', 'set_rate_limit',
        -- models
        'activate_model', 'active_model', 'add_model', 'alter_model', 'drop_model',
        'estimate_model', 'list_limits', 'list_models', 'rollback_model', 'truncations',
        -- search and health
        '_candidates', '_texts', 'document_state', 'explain', 'progress', 'status', 'wait_for',
        -- evaluation
        'add_judgements', 'compare_means', 'compare_runs', 'drop_eval_set', 'evaluate', 'tune',
        -- query vectors
        'activate_word_vectors', 'begin_word_vectors', 'claim_queries', 'complete_queries',
        'extend_word_vectors', 'prepare_query', 'put_word_vectors', 'set_query_cache'
    ],
    'the functions that run with the owner''s rights are these'
);

-- Private is what nobody may call. Fifteen are granted all the same: row-level security asks
-- _policy_tenant and _policy_partition as the caller, rag.search calls _passages, _past_passages,
-- _context, _candidates and _texts as the caller, and procedures, which have no rights of their
-- own, the steps of a move and of maintenance.
select set_eq(
    $$
        select distinct f.name::text
        from functions as f
        cross join aclexplode(f.acl) as a
        where f.name like '\_%' and a.grantee <> f.owner
    $$,
    array[
        '_policy_tenant', '_context', '_candidates', '_texts', '_passages', '_past_passages',
        '_policy_partition', '_begin_move', '_begin_as_autocommit', '_pause',
        '_move_on', '_move', '_pool', '_begin_maintenance', '_maintain'
    ],
    'no role may execute a private function, but for fifteen'
);
select is_empty(
    $$
        select f.signature
        from functions as f
        where
            f.name not like '\_%'
            and not exists (
                select from aclexplode(f.acl) as a where a.grantee <> f.owner
            )
    $$,
    'the name of a function that nobody may execute begins with _'
);

-- Volatility and parallelism, by whom a function calls.
create temporary view calls as
select
    f.signature as caller,
    f.volatility,
    f.parallelism,
    g.signature as callee,
    g.volatility as callee_volatility,
    g.parallelism as callee_parallelism
from functions as f
join functions as g on f.code ~ ('\mrag\.' || g.name || '\(') and g.oid <> f.oid;

select is_empty(
    $$ select f.signature from functions as f where f.volatility = 'v' and f.parallelism <> 'u' $$,
    'what writes is parallel unsafe'
);
select is_empty(
    $$ select f.signature from functions as f where f.volatility <> 'v' and f.parallelism = 'u' $$,
    'what only reads can be run beside parallel workers'
);
select is_empty(
    $$
        select c.caller, c.callee
        from calls as c
        -- immutable, stable, volatile happen to be in the order of the alphabet
        where c.volatility < c.callee_volatility
    $$,
    'no function is steadier than those it calls'
);
select is_empty(
    $$
        select c.caller, c.callee
        from calls as c
        where strpos('sru', c.parallelism::text) < strpos('sru', c.callee_parallelism::text)
    $$,
    'no function is safer in parallel than those it calls'
);
select is_empty(
    $$
        select f.signature, c.relname
        from functions as f
        join pg_class as c
            on c.relnamespace = 'rag'::regnamespace
            and c.relkind in ('r', 'p', 'v')
            and f.code ~ ('\m(from|join)\s+rag\.' || c.relname || '\M(?!\()')
        where f.volatility = 'i'
    $$,
    'an immutable function reads no table'
);
select is_empty(
    $$
        select f.signature
        from functions as f
        where
            f.volatility <> 'v'
            -- They change no row, only a setting of the session, the transaction, or their own.
            and f.name not in ('_note', '_nearest', '_keep_memory')
            and f.code
            ~* '\m(insert into|update rag\.|delete from|set_config|pg_notify|for update)\M'
    $$,
    'a function that writes or locks rows says that it is volatile'
);
select is_empty(
    $$
        select f.signature
        from functions as f
        where f.parallelism = 's' and f.code ~* '\m(current_setting|session_user|current_user)\M'
    $$,
    'who asks for settings or users is not parallel safe'
);

-- Bodies. What a raise says ends at the semicolon in front of the next end, at the latest.
create temporary view raises as
select f.signature, m[1] as level, m[2] as message, m[3] as rest
from functions as f
cross join regexp_matches(
    f.statements,
    $re$\mraise (\w+)\s+'((?:[^']|'')*)'((?:[^;']|'(?:[^']|'')*')*);$re$,
    'g'
) as m
-- A raise that is caught some lines below is a way out, no error.
where f.code !~ '\mwhen sqlstate\M' or m[1] <> 'sqlstate';

select cmp_ok((select count(*)::int from raises), '>', 20, 'the errors are found');
select is(
    (select count(*) from raises),
    (
        select sum(regexp_count(f.code, '\mraise (?!sqlstate)\w+'))::bigint
        from functions as f
        join pg_language as l on l.oid = f.language and l.lanname = 'plpgsql'
    ),
    'each raise has a message of its own'
);
select is_empty(
    $$ select r.signature, r.level from raises as r where r.level <> 'exception' $$,
    'what is raised is an exception'
);
select is_empty(
    $$ select r.signature, r.message from raises as r where r.rest !~ '\merrcode = ''' $$,
    'every raise has an errcode'
);
select is_empty(
    $$ select r.signature, r.message from raises as r where r.rest !~ '\mdetail = ' $$,
    'every raise has a detail with the values'
);
select is_empty(
    $$ select r.signature, r.message from raises as r where r.rest !~ '\mhint = ' $$,
    'every raise has a hint with the way out'
);
select is_empty(
    $$
        select r.signature, r.message
        from raises as r
        where r.message !~ '^[a-z"]' or r.message ~ '[.!]$' or r.message = ''
    $$,
    'a message begins in lower case and ends without a full stop'
);
select is_empty(
    $$
        select r.signature, r.message
        from raises as r
        where
            -- raise has %, format() has %s: mixed up it prints "x" as "xs".
            r.message ~ '%[sIL]'
            or regexp_count(replace(r.message, '%%', ''), '%')
                <> (
                    -- commas between arguments, not those inside of brackets
                    select regexp_count(
                        regexp_replace(
                            split_part(r.rest, ' using', 1),
                            '\([^()]*(\([^()]*\)[^()]*)*\)', '', 'g'
                        ),
                        ','
                    )
                )
    $$,
    'a message has as many values as places for them'
);
select is_empty(
    $$
        select r.signature, c.code
        from raises as r
        cross join substring(r.rest from 'errcode = ''(\w+)''') as c (code)
        where
            c.code <> all (array[
                'RG001', 'RG002', 'RG003', 'RG004', 'RG005', 'RG006', 'RG007',
                'RG020', 'RG021', 'RG022',
                'invalid_authorization_specification', 'read_only_sql_transaction',
                '22023', 'invalid_parameter_value', '42501', 'insufficient_privilege', 'P0002',
                'no_data_found', 'duplicate_object', 'undefined_object',
                'object_not_in_prerequisite_state', 'serialization_failure', 'lock_not_available'
            ])
    $$,
    'every errcode is one of the documented ones'
);
select is_empty(
    $$ select f.signature from functions as f where f.code ~* '\mwhen others\M' $$,
    'nothing swallows every error'
);
select is_empty(
    $$
        select f.signature
        from functions as f
        where f.code ~* '\mexecute\s+(?!format\()' or f.code ~* '\mexecute\M[^;]*\|\|'
    $$,
    'dynamic SQL is made by format alone'
);
select is_empty(
    $$
        select f.signature, c.relname
        from functions as f
        join pg_class as c
            on c.relnamespace = 'rag'::regnamespace
            and c.relkind in ('r', 'p', 'v')
            and f.code ~ ('\m(from|join|into|update)\s+' || c.relname || '\M')
        -- unless it is the name of a common table expression
        where f.code !~* ('\m' || c.relname || '\s+as\s+(materialized\s+)?\(')
    $$,
    'tables are written with their schema'
);

select is_empty(
    $$
        select f.signature
        from functions as f
        where
            f.code ~ '\m(insert into|delete from) rag\.documents\M'
            and f.code !~ '\mrag\._count_usage\('
            -- It deletes the counts, too.
            and f.name <> '_erase_tenant'
    $$,
    'who adds or deletes documents counts them (rag._count_usage)'
);

-- From an estimate of 100,000 on a plan is compiled. At a million chunks most are of 8 to 33, but
-- those that count or copy a tenant grow with him, and by statistics of a day with two documents
-- rag.get was one of 2,000,000. What a caller turns off is off for all that it calls; the clause
-- takes half a microsecond.
select is_empty(
    $$
        with recursive
        compiled as (
            select f.oid, f.signature, f.statements
            from functions as f
            where
                not coalesce(f.settings, '{}') && array['jit=off']
                and exists (select from aclexplode(f.acl) as a where a.grantee <> f.owner)
            union
            select g.oid, g.signature, g.statements
            from compiled as c
            join functions as g on c.statements ~ ('\mrag\.' || g.name || '\(')
            where not coalesce(g.settings, '{}') && array['jit=off']
        )
        select c.signature
        from compiled as c
        where
            c.statements
            ~ '\m(from|join|update)\s+(rag\.(documents|chunks|lexemes|embeddings|past_\w+|jobs|'
            'lexeme_statistics)\M|rag_data\.)'
    $$,
    'what reads tables that grow with the documents runs with jit = off'
);

-- Tables ----------------------------------------------------------------------------------------

create temporary view tables as
select
    c.oid,
    c.oid::regclass::text as name,
    c.relkind as kind,
    c.relowner as owner,
    c.relnamespace::regnamespace::text as schema,
    c.relrowsecurity as has_policies,
    c.relispartition as is_partition,
    coalesce(c.relacl, acldefault('r', c.relowner)) as acl,
    exists (
        select
        from pg_attribute as a
        where a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped
    ) as is_of_tenants
from pg_class as c
where
    c.relnamespace in ('rag'::regnamespace, 'rag_data'::regnamespace)
    and c.relkind in ('r', 'p', 'v', 'm', 'f');

select cmp_ok(
    (select count(*)::int from tables as t where t.is_of_tenants and not t.is_partition),
    '>=', 10, 'there are tables of tenants'
);
select cmp_ok(
    (select count(*)::int from tables as t where t.schema = 'rag_data'),
    '>=', 49, '16 partitions of chunks, lexemes and embeddings, and the model''s own'
);
select is_empty(
    $$
        select c.oid::regclass, c.relkind
        from pg_class as c
        where
            c.relnamespace in ('rag'::regnamespace, 'rag_data'::regnamespace)
            and c.relowner <> 'rag_owner'::regrole
    $$,
    'rag_owner owns every table, index, sequence and type'
);
select is_empty(
    $$
        select t.name
        from tables as t
        where t.schema = 'rag' and coalesce(btrim(obj_description(t.oid, 'pg_class')), '') = ''
    $$,
    'every table and view has a comment'
);
select is_empty(
    $$ select t.name, t.kind from tables as t where t.kind in ('m', 'f') $$,
    'no materialized view or foreign table holds data: neither knows row-level security'
);
select is_empty(
    $$
        select t.name
        from tables as t
        join pg_class as c on c.oid = t.oid
        where t.kind = 'v' and not coalesce(c.reloptions, '{}') && array['security_invoker=true']
    $$,
    'every view reads with the caller''s rights'
);

select is_empty(
    $$
        select t.name
        from tables as t
        where t.is_of_tenants and t.kind <> 'v' and not t.has_policies
    $$,
    'every table with a tenant_id, each partition included, has row-level security'
);
select is_empty(
    $$
        (
            select t.name, p.policy
            from tables as t
            cross join (values
                ('tenant_only restrictive * {public} (tenant_id = ( SELECT rag._policy_tenant() '
                'AS _policy_tenant)) -'),
                ('app_reads permissive r {rag_app} true -')
            ) as p (policy)
            where t.is_of_tenants and t.kind <> 'v'
            except
            select
                p.polrelid::regclass::text,
                format(
                    '%s %s %s %s %s %s', p.polname,
                    case when p.polpermissive then 'permissive' else 'restrictive' end,
                    p.polcmd,
                    (
                        select array_agg(coalesce(r.rolname, 'public'))
                        from unnest(p.polroles) as o (oid)
                        left join pg_roles as r on r.oid = o.oid
                    ),
                    pg_get_expr(p.polqual, p.polrelid),
                    coalesce(pg_get_expr(p.polwithcheck, p.polrelid), '-')
                )
            from pg_policy as p
        )
    $$,
    'each has the restrictive policy of the tenant and the permissive one of rag_app'
);
select is_empty(
    $$
        select p.polrelid::regclass, p.polname
        from pg_policy as p
        join tables as t on t.oid = p.polrelid
        where p.polname not in ('tenant_only', 'app_reads', 'in_its_place') or not t.is_of_tenants
    $$,
    'and no other policy anywhere'
);
select set_eq(
    $$
        select p.polrelid::regclass::text, pg_get_expr(p.polqual, p.polrelid)
        from pg_policy as p
        where p.polname = 'in_its_place' and not p.polpermissive and p.polcmd = '*'
    $$,
    $$
        select
            x.name,
            '(partition_id = ( SELECT rag._policy_partition() AS _policy_partition))'
        from unnest(array['rag.chunks', 'rag.lexemes', 'rag.embeddings']) as x (name)
    $$,
    'but for partitioned tables that one which has a snapshot see a tenant in one place'
);

select is_empty(
    $$
        select t.name, a.grantee::regrole, a.privilege_type
        from tables as t
        cross join aclexplode(t.acl) as a
        where t.schema = 'rag_data' and a.grantee <> t.owner
    $$,
    'nobody but the owner has any right on a partition'
);
select is_empty(
    $$
        select n.nspname, a.grantee, a.privilege_type
        from pg_namespace as n
        cross join aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) as a
        where
            a.grantee <> n.nspowner
            and (
                n.nspname = 'rag_data'
                or n.nspname = 'rag' and (
                    a.privilege_type <> 'USAGE'
                    or a.grantee not in (
                        'rag_admin'::regrole, 'rag_app'::regrole, 'rag_worker'::regrole
                    )
                )
            )
    $$,
    'schema rag is open to the three roles, for use, and rag_data to nobody'
);
select is_empty(
    $$
        select t.name, a.grantee, a.privilege_type
        from tables as t
        cross join aclexplode(t.acl) as a
        where
            a.grantee <> t.owner
            and (a.privilege_type <> 'SELECT' or a.is_grantable or a.grantee = 0)
    $$,
    'a right on a table is to read it: no write, truncate, references or trigger'
);
select is_empty(
    $$
        select a.attrelid::regclass, a.attname, a.attacl
        from pg_attribute as a
        join tables as t on t.oid = a.attrelid
        where a.attacl is not null
    $$,
    'no right is given on single columns'
);
select is_empty(
    $$
        select c.oid::regclass, a.grantee
        from pg_class as c
        cross join aclexplode(c.relacl) as a
        where
            c.relkind = 'S'
            and c.relnamespace in ('rag'::regnamespace, 'rag_data'::regnamespace)
            and a.grantee <> c.relowner
    $$,
    'nobody reads a sequence: it would tell how much the others put'
);
select is_empty(
    $$
        select p.partrelid::regclass
        from pg_partitioned_table as p
        join tables as t on t.oid = p.partrelid
        where p.partdefid <> 0
    $$,
    'no table has a default partition'
);
select is_empty(
    $$
        select t.name
        from tables as t
        where t.schema = 'rag_data' and not t.is_partition
    $$,
    'schema rag_data holds nothing but partitions'
);
select is_empty(
    $$
        select e.name
        from tables as e
        where
            e.name ~ '^rag_data\.embeddings_m\d+_p\d+$'
            and not exists (
                select
                from pg_constraint as c
                where
                    c.conrelid = e.oid
                    and c.contype = 'c'
                    and pg_get_constraintdef(c.oid) like '%vector_dims(embedding) = %'
            )
    $$,
    'each partition of embeddings takes only vectors of its model''s size'
);

-- Keys ------------------------------------------------------------------------------------------

create temporary view keys as
select
    t.oid as table_oid,
    t.name as table_name,
    i.indexrelid::regclass::text as name,
    i.indisprimary as is_primary,
    array(
        select a.attname::text
        from unnest(i.indkey::int2[]) with ordinality as k (attnum, n)
        join pg_attribute as a on a.attrelid = i.indrelid and a.attnum = k.attnum
        order by k.n
    ) as columns
from tables as t
join pg_index as i on i.indrelid = t.oid and i.indisunique
where t.is_of_tenants;

select is_empty(
    $$
        select t.name
        from tables as t
        where
            t.is_of_tenants
            and t.kind <> 'v'
            -- A grant of all tenants has null there, which no primary key takes.
            and t.name <> 'rag.tenant_grants'
            and not exists (
                select
                from keys as k
                where k.table_oid = t.oid and k.is_primary and k.columns[1] = 'tenant_id'
            )
    $$,
    'the primary key of a tenant''s table begins with tenant_id'
);
select is_empty(
    $$
        select k.name, k.columns
        from keys as k
        where
            not 'tenant_id' = any(k.columns)
            and k.name not in (
                -- An administrator names a tenant by it; no tenant ever writes here.
                'rag.tenants_name_key',
                -- The handle that a worker gives back; generated, so nobody can probe with it.
                'rag.jobs_job_id_key'
            )
    $$,
    'every unique key of a tenant''s table contains tenant_id, so none tells of another tenant'
);
select is_empty(
    $$
        select c.conrelid::regclass, c.conname
        from pg_constraint as c
        join tables as f on f.oid = c.conrelid
        join tables as t on t.oid = c.confrelid
        where
            c.contype = 'f'
            and t.is_of_tenants
            and not exists (
                select
                from unnest(c.conkey, c.confkey) as k (here, there)
                join pg_attribute as h on h.attrelid = c.conrelid and h.attnum = k.here
                join pg_attribute as o on o.attrelid = c.confrelid and o.attnum = k.there
                where h.attname = 'tenant_id' and o.attname = 'tenant_id'
            )
    $$,
    'every foreign key to a tenant''s table contains tenant_id: its check knows no policy'
);
select is_empty(
    $$
        select c.conrelid::regclass, c.conname
        from pg_constraint as c
        join tables as t on t.oid = c.conrelid
        where
            c.contype = 'f'
            and not exists (
                select
                from pg_index as i
                where
                    i.indrelid = c.conrelid
                    and i.indpred is null
                    and i.indisvalid
                    and (i.indkey::int2[])[0:cardinality(c.conkey) - 1] @> c.conkey
            )
    $$,
    'the columns of every foreign key begin an index'
);
select is_empty(
    $$
        select i.indexrelid::regclass
        from pg_index as i
        join tables as t on t.oid = i.indrelid
        where not i.indisvalid or not i.indisready
    $$,
    'every index is valid'
);

-- A tenant's own partition has one more.
do $$ begin perform rag._create_partition('dedicated'); end $$;
select is_empty(
    $$
        select i.oid::regclass
        from tables as t
        join pg_index as x on x.indrelid = t.oid
        join pg_class as i on i.oid = x.indexrelid
        join pg_am as a on a.oid = i.relam and a.amname = 'gin'
        where not coalesce(i.reloptions, '{}') && array['fastupdate=off', 'fastupdate=false']
    $$,
    'no GIN index has a list of what is pending, which every search would read to its end'
);
select is_empty(
    $$
        select g.tgrelid::regclass, g.tgname
        from pg_trigger as g
        join tables as t on t.oid = g.tgrelid
        where not g.tgisinternal
    $$,
    'no table has a trigger, so that it can be distributed'
);

-- Roles -----------------------------------------------------------------------------------------

select is_empty(
    $$
        select r.rolname
        from pg_roles as r
        where
            r.rolname in ('rag_owner', 'rag_admin', 'rag_app', 'rag_worker')
            and (
                r.rolcanlogin or r.rolsuper or r.rolbypassrls or r.rolcreaterole
                or r.rolcreatedb or r.rolreplication
            )
    $$,
    'the roles have no power of their own and nobody logs in as one'
);
select is_empty(
    $$
        select r.rolname, g.rolname
        from pg_roles as r
        cross join pg_roles as g
        where
            r.rolname in ('rag_admin', 'rag_app', 'rag_worker')
            and g.rolname <> r.rolname
            and pg_has_role(r.oid, g.oid, 'member')
    $$,
    'none of them is a member of another role'
);

select * from finish();
rollback;
