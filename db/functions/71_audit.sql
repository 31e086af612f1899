-- rag.audit(): is everything still as it has to be, so that no tenant sees another's data? Rules
-- are asked of the catalogs; functions and rights are compared with what the last migration left.
--
-- A check returns its offenders: none is what it wants.

create or replace function rag._rights(acl aclitem[])
    returns text
    language sql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select coalesce(
        string_agg(
            format(
                '%s %s%s',
                case when a.grantee = 0 then 'PUBLIC' else pg_get_userbyid(a.grantee) end,
                lower(a.privilege_type),
                case when a.is_grantable then ' (may grant)' else '' end
            ),
            ', '
            order by 1
        ),
        'nobody'
    )
    from aclexplode(_rights.acl) as a
    where a.grantee <> 'rag_owner'::regrole
$$;

comment on function rag._rights(aclitem[]) is
    'Rights as text, in one order; those of rag_owner go without saying.';

create or replace function rag._fingerprints()
    returns table (kind text, name text, fingerprint text)
    language sql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select
        'function',
        p.oid::regprocedure::text,
        encode(
            sha256(convert_to(
                concat_ws(
                    '|', pg_get_userbyid(p.proowner), p.prosecdef, p.provolatile, p.proleakproof,
                    p.prolang, p.proconfig, p.prosrc, pg_get_function_sqlbody(p.oid)
                ),
                'UTF8'
            )),
            'hex'
        )
    from pg_proc as p
    where p.pronamespace = 'rag'::regnamespace
    union all
    select
        'rights of function', p.oid::regprocedure::text,
        rag._rights(coalesce(p.proacl, acldefault('f', p.proowner)))
    from pg_proc as p
    where p.pronamespace = 'rag'::regnamespace
    union all
    -- Partitions come and go; there nobody has any right.
    select
        case c.relkind when 'S' then 'rights of sequence' else 'rights of table' end,
        c.oid::regclass::text,
        rag._rights(coalesce(
            c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::"char", c.relowner)
        ))
    from pg_class as c
    where c.relnamespace = 'rag'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
    union all
    select
        'rights of schema', n.nspname::text,
        rag._rights(coalesce(n.nspacl, acldefault('n', n.nspowner)))
    from pg_namespace as n
    where n.nspname in ('rag', 'rag_data')
$$;

comment on function rag._fingerprints() is
    'Functions and rights of ours: what each is, in a form that can be compared.';

create or replace function rag._take_baseline()
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
begin
    delete from rag.baseline as b
    where not exists (
        select from rag._fingerprints() as f where f.kind = b.kind and f.name = b.name
    );
    insert into rag.baseline as b (kind, name, fingerprint)
    select f.kind, f.name, f.fingerprint
    from rag._fingerprints() as f
    on conflict on constraint baseline_pkey
    do update set fingerprint = excluded.fingerprint
    where b.fingerprint <> excluded.fingerprint;
end
$$;

comment on function rag._take_baseline() is
    'Note functions and rights as they are; the migrator does so when it has set them.';

create or replace function rag._deviations(kind text)
    returns text[]
    language sql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select array(
        select format(
            '%s: %s', coalesce(f.name, b.name),
            case
                when f.name is null then 'is gone'
                when b.name is null then 'was not there'
                when f.kind like 'rights%' then format('%s, and should be %s', f.fingerprint,
                    b.fingerprint)
                else 'was changed'
            end
        )
        from (
            select x.kind, x.name, x.fingerprint
            from rag._fingerprints() as x
            where x.kind like _deviations.kind
        ) as f
        full join (
            select y.kind, y.name, y.fingerprint
            from rag.baseline as y
            where y.kind like _deviations.kind
        ) as b on b.kind = f.kind and b.name = f.name
        where f.fingerprint is distinct from b.fingerprint
        order by 1
    )
$$;

comment on function rag._deviations(text) is
    'What is not as the last migration left it, of the kinds like that.';

create or replace function rag._tables()
    returns table (
        oid oid, name text, kind text, is_partition boolean, in_data boolean,
        is_of_tenants boolean
    )
    language sql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select
        c.oid,
        c.oid::regclass::text,
        c.relkind::text,
        c.relispartition,
        c.relnamespace = 'rag_data'::regnamespace,
        exists (
            select
            from pg_attribute as a
            where a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped
        )
    from pg_class as c
    where
        c.relnamespace in ('rag'::regnamespace, 'rag_data'::regnamespace)
        and c.relkind in ('r', 'p', 'v', 'm', 'f')
$$;

comment on function rag._tables() is 'Tables and views of ours, for the audit.';

create or replace function rag._is_invoker_view(options text[])
    returns boolean
    language sql
    immutable
    parallel safe
    security invoker
return coalesce(options, '{}') && '{security_invoker=true,security_invoker=on}';

comment on function rag._is_invoker_view(text[]) is
    'Whether a view of these options reads with the rights of its caller.';

create or replace function rag._is_by_tenant(index pg_index)
    returns boolean
    language sql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select exists (
        select
        from pg_attribute as a
        where
            a.attrelid = (_is_by_tenant.index).indrelid
            and a.attname = 'tenant_id'
            and a.attnum = any((_is_by_tenant.index).indkey::int2[])
    )
$$;

comment on function rag._is_by_tenant(pg_index) is 'Whether tenant_id is a column of an index.';

create or replace function rag._audit_tables()
    returns table (name text, offenders text[], what_to_do text)
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_places constant text[] := '{rag.chunks,rag.lexemes,rag.embeddings}';
begin
    -- Not forced: the owner's functions read under the tenant they have verified, by indexes that
    -- no policy lets them use. So what matters is who is the owner.
    return query
    select
        'row-level security',
        array(
            select t.name
            from rag._tables() as t
            join pg_class as c on c.oid = t.oid
            where t.is_of_tenants and t.kind in ('r', 'p') and not c.relrowsecurity
        ),
        'alter table … enable row level security';
    return query
    select
        'owner of tables',
        array(
            select t.name
            from rag._tables() as t
            join pg_class as c on c.oid = t.oid
            where c.relowner <> 'rag_owner'::regrole
        ),
        'alter table … owner to rag_owner: policies do not bind an owner';
    return query
    select
        'policies',
        array(
            select format('%s lacks %s', t.name, w.policy)
            from rag._tables() as t
            cross join (values
                ('tenant_only restrictive * (tenant_id = ( SELECT rag._policy_tenant() AS '
                '_policy_tenant)) {0}', false),
                (format('app_reads permissive r true {%s}', 'rag_app'::regrole::oid), false),
                ('in_its_place restrictive * (partition_id = ( SELECT rag._policy_partition() AS '
                '_policy_partition)) {0}', true)
            ) as w (policy, is_of_place)
            where
                t.is_of_tenants
                and (not w.is_of_place or t.name = any(v_places))
                and t.kind in ('r', 'p')
                and not exists (
                    select
                    from pg_policy as p
                    where
                        p.polrelid = t.oid
                        and w.policy = concat_ws(
                            ' ', p.polname,
                            case when p.polpermissive then 'permissive' else 'restrictive' end,
                            p.polcmd, pg_get_expr(p.polqual, p.polrelid), p.polroles::text
                        )
                        and p.polwithcheck is null
                )
            union all
            select format('%s has %s', t.name, p.polname)
            from rag._tables() as t
            join pg_policy as p on p.polrelid = t.oid
            where
                p.polname not in ('tenant_only', 'app_reads', 'in_its_place')
                or p.polname = 'in_its_place' and not t.name = any(v_places)
            order by 1
        ),
        'drop the foreign policy; python -m db.migrate makes those that are missing, where a table '
        'has none';
    return query
    select
        'partitions',
        array(
            select format('%s: %s', t.name, rag._rights(c.relacl))
            from rag._tables() as t
            join pg_class as c on c.oid = t.oid
            where
                t.in_data
                and exists (
                    select from aclexplode(c.relacl) as a where a.grantee <> c.relowner
                )
            union all
            select format('%s lies in schema rag', t.name)
            from rag._tables() as t
            where t.is_partition and not t.in_data
            union all
            select format('%s lies in schema %s', c.oid::regclass, c.relnamespace::regnamespace)
            from rag._tables() as t
            join pg_inherits as i on i.inhparent = t.oid
            join pg_class as c on c.oid = i.inhrelid
            where
                c.relnamespace not in ('rag'::regnamespace, 'rag_data'::regnamespace)
                and c.relkind in ('r', 'p', 'f')
            union all
            select format('%s has a default partition', p.partrelid::regclass)
            from pg_partitioned_table as p
            join rag._tables() as t on t.oid = p.partrelid
            where p.partdefid <> 0
            order by 1
        ),
        'revoke all on table … from …: a partition that is named itself knows no policy of its '
        'parent';
    return query
    select
        'views',
        array(
            select t.name
            from rag._tables() as t
            join pg_class as c on c.oid = t.oid
            where
                t.kind in ('m', 'f')
                or t.kind = 'v' and not rag._is_invoker_view(c.reloptions)
            union all
            -- In other schemas too: a view reads with the rights of its owner. A temporary one is
            -- of the session that made it, which has those rights anyway.
            select format('%s reads %s', v.oid::regclass, t.name)
            from rag._tables() as t
            join pg_depend as d
                on d.refclassid = 'pg_class'::regclass and d.refobjid = t.oid
                and d.classid = 'pg_rewrite'::regclass
            join pg_rewrite as w on w.oid = d.objid
            join pg_class as v on v.oid = w.ev_class
            where
                v.oid <> t.oid
                and t.is_of_tenants
                and v.relpersistence <> 't'
                and v.relnamespace not in ('rag'::regnamespace, 'rag_data'::regnamespace)
                and (
                    v.relkind = 'm'
                    or v.relkind = 'v' and not rag._is_invoker_view(v.reloptions)
                )
            group by v.oid, t.name
            order by 1
        ),
        'alter view … set (security_invoker = true); no materialized view knows policies';
    return query
    select
        'keys',
        array(
            select format('%s is unique without tenant_id', i.indexrelid::regclass)
            from rag._tables() as t
            join pg_index as i on i.indrelid = t.oid and i.indisunique
            where
                t.is_of_tenants
                and i.indexrelid::regclass::text not in (
                    -- Written by administrators alone.
                    'rag.tenants_name_key',
                    -- Generated: nobody can probe with it.
                    'rag.jobs_job_id_key'
                )
                and not rag._is_by_tenant(i)
            union all
            select format('%s refers to %s without tenant_id', c.conname, c.confrelid::regclass)
            from pg_constraint as c
            join rag._tables() as t on t.oid = c.confrelid
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
            order by 1
        ),
        'put tenant_id into the key: a conflict tells that somebody else has the value';
    return query
    select
        'statistics and caches',
        array(
            select format('%s has no tenant_id in its primary key', t.name)
            from rag._tables() as t
            where
                t.name in (
                    'rag.lexeme_statistics', 'rag.posting_sets', 'rag.postings',
                    'rag.query_embeddings', 'rag.queries', 'rag.tenant_usage', 'rag.usage_deltas'
                )
                and not exists (
                    select
                    from pg_index as i
                    where i.indrelid = t.oid and i.indisprimary and rag._is_by_tenant(i)
                )
            union all
            -- Samples of rows, which the planner shows to whoever may read a table's columns.
            select format('%s keeps samples of %s', s.stxname, t.name)
            from pg_statistic_ext as s
            join rag._tables() as t on t.oid = s.stxrelid
            where t.is_of_tenants
            order by 1
        ),
        'every tenant has statistics of its own; drop statistics …';
    return query
    select
        'triggers and rules',
        array(
            select format('%s on %s', g.tgname, t.name)
            from pg_trigger as g
            join rag._tables() as t on t.oid = g.tgrelid
            where not g.tgisinternal
            union all
            select format('%s on %s', w.rulename, t.name)
            from pg_rewrite as w
            join rag._tables() as t on t.oid = w.ev_class
            where w.rulename <> '_RETURN'
            order by 1
        ),
        'drop it: it runs with the rights of whoever writes, and sees the rows';
end
$$;

comment on function rag._audit_tables() is 'Checks of tables: name, offenders, what to do.';

create or replace function rag._audit_functions()
    returns table (name text, offenders text[], what_to_do text)
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    select
        'functions', rag._deviations('function'),
        'python -m db.migrate puts back what was changed and drops what is not ours';
    return query
    select
        'search paths',
        array(
            select p.oid::regprocedure::text
            from pg_proc as p
            where
                p.pronamespace = 'rag'::regnamespace
                and p.prosecdef
                and not coalesce(p.proconfig, '{}') && (
                    select array[format('search_path=pg_catalog, %I, pg_temp', n.nspname)]
                    from pg_extension as e
                    join pg_namespace as n on n.oid = e.extnamespace
                    where e.extname = 'vector'
                )
            order by 1
        ),
        'python -m db.migrate: without it temporary objects of the caller come before ours';
    return query
    select
        'schemas on the search path',
        array(
            select format('%s may create in schema %s', r.rolname, n.nspname)
            from pg_extension as e
            join pg_namespace as n on n.oid = e.extnamespace
            cross join (
                select 0::oid as oid, 'PUBLIC' as rolname
                union all
                select x.oid, x.rolname
                from pg_roles as x
                where
                    not x.rolsuper
                    and pg_has_role(x.oid, 'rag_app', 'member')
                    and not pg_has_role(x.oid, 'rag_owner', 'member')
            ) as r
            where
                e.extname = 'vector'
                and case
                    when r.oid = 0 then has_schema_privilege('public', n.oid, 'create')
                    else has_schema_privilege(r.oid, n.oid, 'create')
                end
            order by 1
        ),
        'revoke create on schema … from …: who may make functions there can act as rag_owner';
    return query
    select
        'leakproof functions',
        array(
            -- Those of initdb are below 16384.
            select p.oid::regprocedure::text
            from pg_proc as p
            where p.proleakproof and p.oid >= 16384
            order by 1
        ),
        'alter function … not leakproof: it is called with rows that the policy hides';
end
$$;

comment on function rag._audit_functions() is 'Checks of functions: name, offenders, what to do.';

create or replace function rag._audit_rights()
    returns table (name text, offenders text[], what_to_do text)
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    select
        'rights',
        rag._deviations('rights of %') || array(
            select format('%s.%s: %s', t.name, a.attname, rag._rights(a.attacl))
            from rag._tables() as t
            join pg_attribute as a on a.attrelid = t.oid and a.attacl is not null
            order by 1
        ),
        'python -m db.migrate sets the rights of ours; revoke what other roles and columns have';
    return query
    select
        'PUBLIC',
        array(
            select format('%s: %s', x.name, a.privilege_type)
            from (
                select t.name, c.relacl as acl
                from rag._tables() as t
                join pg_class as c on c.oid = t.oid
                union all
                select p.oid::regprocedure::text, coalesce(p.proacl, acldefault('f', p.proowner))
                from pg_proc as p
                where p.pronamespace = 'rag'::regnamespace
                union all
                select n.nspname, n.nspacl
                from pg_namespace as n
                where n.nspname in ('rag', 'rag_data')
            ) as x
            cross join aclexplode(x.acl) as a
            where a.grantee = 0
            union all
            select format('what %s will create in %s', pg_get_userbyid(d.defaclrole),
                coalesce(d.defaclnamespace::regnamespace::text, 'any schema'))
            from pg_default_acl as d
            cross join aclexplode(d.defaclacl) as a
            where
                a.grantee <> d.defaclrole
                and (
                    d.defaclnamespace in ('rag'::regnamespace, 'rag_data'::regnamespace)
                    or d.defaclrole = 'rag_owner'::regrole
                )
            order by 1
        ),
        'revoke … from public; alter default privileges … revoke …';
    return query
    select
        'roles of ragdb',
        array(
            select r.rolname::text
            from pg_roles as r
            where
                r.rolname in ('rag_owner', 'rag_admin', 'rag_app', 'rag_worker')
                and (
                    r.rolcanlogin or r.rolsuper or r.rolbypassrls or r.rolcreaterole
                    or r.rolcreatedb or r.rolreplication
                )
            union all
            select format('%s is a member of %s', r.rolname, g.rolname)
            from pg_roles as r
            cross join pg_roles as g
            where
                r.rolname in ('rag_admin', 'rag_app', 'rag_worker')
                and g.rolname <> r.rolname
                and pg_has_role(r.oid, g.oid, 'member')
            order by 1
        ),
        'alter role … nologin nosuperuser nobypassrls nocreaterole nocreatedb noreplication; '
        'revoke … from …';
    -- Whoever migrated is a member of rag_owner and granted 'default': that one is no application.
    return query
    select
        'roles of applications',
        array(
            select distinct format('%s %s', r.rolname, case
                when r.rolsuper then 'is a superuser'
                when r.rolbypassrls then 'has bypassrls'
                else 'is a member of ' || m.rolname
            end)
            from rag.tenant_grants as g
            left join rag.tenants as t on t.tenant_id = g.tenant_id
            join pg_roles as r on r.oid = g.role
            left join pg_roles as m
                on m.rolname in (
                    'rag_owner', 'rag_admin', 'pg_read_all_data', 'pg_write_all_data',
                    'pg_read_all_stats', 'pg_monitor', 'pg_read_server_files',
                    'pg_write_server_files', 'pg_execute_server_program'
                )
                and pg_has_role(r.oid, m.oid, 'member')
            where
                (r.rolsuper or r.rolbypassrls or m.oid is not null)
                and not (
                    coalesce(t.name = 'default', false)
                    and (r.rolsuper or pg_has_role(r.oid, 'rag_owner', 'member'))
                )
            order by 1
        ),
        'grant tenants to roles that are in rag_app and nothing else: no policy binds these';
    return query
    select
        'keys of tokens',
        array(
            select format('%s may be read by %s', k.what, r.rolname)
            from (values ('rag.token_keys'), ('rag.tenant_grants'), ('rag.baseline')) as k (what)
            cross join pg_roles as r
            where
                not r.rolsuper
                and not pg_has_role(r.oid, 'rag_owner', 'member')
                and r.rolname not in ('pg_read_all_data', 'pg_write_all_data')
                and not pg_has_role(r.oid, 'pg_read_all_data', 'member')
                and (
                    has_any_column_privilege(r.oid, k.what, 'select, insert, update')
                    or has_table_privilege(r.oid, k.what, 'delete, truncate, references, trigger')
                )
            order by 1
        ),
        'revoke all on table … from …: whoever reads a key can be every tenant; then add new keys '
        'and retire these';
end
$$;

comment on function rag._audit_rights() is
    'Checks of roles and rights: name, offenders, what to do.';

create or replace function rag._audit_context()
    returns text[]
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_tenant text := current_setting('rag.tenant', true);
    v_authenticated text := current_setting('rag.authenticated', true);
    v_try record;
    v_found text[] := '{}';
begin
    for v_try in
        select x.tenant, x.authenticated
        from (values
            ('no tenant of this name', ''),
            (' ', ''),
            (v_tenant, '-'),
            (v_tenant, '1.1.99999999999.t.' || repeat('0', 64)),
            (v_tenant, '1.1.99999999999.s.' || repeat('f', 64))
        ) as x (tenant, authenticated)
    loop
        perform set_config('rag.tenant', coalesce(v_try.tenant, ''), true);
        perform set_config('rag.authenticated', v_try.authenticated, true);
        if rag._policy_tenant() is not null then
            v_found := v_found || format('rag.tenant %L and rag.authenticated %L open a tenant',
                v_try.tenant, v_try.authenticated);
        end if;
    end loop;
    perform set_config('rag.tenant', coalesce(v_tenant, ''), true);
    perform set_config('rag.authenticated', coalesce(v_authenticated, ''), true);
    return v_found;
end
$$;

comment on function rag._audit_context() is
    'What of the settings by hand lets the caller in, that should not; leaves them as they were.';

create or replace function rag._postgres_warning(version int)
    returns text
    language sql
    immutable
    parallel safe
    security invoker
return case
    when version < 160015
        or version between 170000 and 170010
        or version between 180000 and 180004
    then 'below 16.15, 17.11 or 18.5: this minor release has known security holes '
        '(CVE-2026-14678). Upgrade when your provider offers it.'
end;

comment on function rag._postgres_warning(int) is
    'The known holes of that server_version_num, or null.';

create or replace function rag._audit_settings()
    returns table (name text, offenders text[], what_to_do text)
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_server int := current_setting('server_version_num')::int;
    v_vector text := (select e.extversion from pg_extension as e where e.extname = 'vector');
begin
    return query
    select
        'context', rag._audit_context(),
        'python -m db.migrate: rag._policy_tenant and what it calls are not ours any more';
    return query
    select
        'defaults of rag.*',
        array(
            select format('%s: %s',
                concat_ws(' in ', pg_get_userbyid(nullif(s.setrole, 0)),
                    'database ' || d.datname),
                c.setting)
            from pg_db_role_setting as s
            left join pg_database as d on d.oid = s.setdatabase
            cross join unnest(s.setconfig) as c (setting)
            where
                c.setting like 'rag.%'
                and (s.setdatabase = 0 or d.datname = current_database())
            order by 1
        ),
        'alter role … reset …: who forgot to say whom he acts as has to get an error';
    return query
    select
        'PostgreSQL',
        array(
            select rag._postgres_warning(v_server)
            where rag._postgres_warning(v_server) is not null
        ),
        'upgrade to 16.15, 17.11, 18.5 or newer';
    return query
    select
        'pgvector',
        array(
            select rag._pgvector_warning(v_vector)
            where rag._pgvector_warning(v_vector) is not null
        ),
        'upgrade to 0.8.4 or newer, reconnect, and reindex every HNSW index';
end
$$;

comment on function rag._audit_settings() is
    'Checks of settings and versions: name, offenders, what to do.';

create or replace function rag.audit()
    returns table (name text, passed boolean, detail text, what_to_do text)
    language plpgsql
    -- It tries settings of the transaction, and puts them back.
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    select
        c.name,
        c.offenders = '{}',
        case when c.offenders <> '{}' then
            array_to_string(c.offenders[:10], '; ')
            || case
                when cardinality(c.offenders) > 10
                    then format('; and %s more', cardinality(c.offenders) - 10)
                else ''
            end
        end,
        case when c.offenders <> '{}' then c.what_to_do end
    from (
        select t.name, t.offenders, t.what_to_do from rag._audit_tables() as t
        union all
        select f.name, f.offenders, f.what_to_do from rag._audit_functions() as f
        union all
        select r.name, r.offenders, r.what_to_do from rag._audit_rights() as r
        union all
        select s.name, s.offenders, s.what_to_do from rag._audit_settings() as s
    ) as c;
end
$$;

comment on function rag.audit() is
    'Is isolation as it has to be? A row each check: whether it passed, and if not what is amiss '
    'and what to do.';
