-- Tenants: who exists, who may act as whom, and who the caller is acting as.
--
-- The setting rag.tenant only says which tenant the caller wants. Whether he may is read from
-- rag.tenant_grants every time, so that setting it by hand gains nothing.

create or replace function rag._role()
    returns regrole
    language sql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    -- Inside a definer function current_user is the owner; SET ROLE is seen in the setting.
    select to_regrole(quote_ident(
        case current_setting('role') when 'none' then session_user::text
        else current_setting('role') end
    ))
$$;

comment on function rag._role() is
    'The role the caller acts as: that of set role, otherwise the login role.';

create or replace function rag._is_superuser()
    returns boolean
    language sql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select r.rolsuper from pg_roles as r where r.oid = rag._role()
$$;

comment on function rag._is_superuser() is 'Whether the role the caller acts as is a superuser.';

create or replace function rag._allowed_tenant(wanted text)
    returns int
    language sql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    -- With nothing wanted it is 'default', for roles to which just that was granted: a service
    -- that may act as everybody and forgot to say as whom gets an error instead.
    select t.tenant_id
    from rag.tenants as t
    where
        t.name = coalesce(wanted, 'default')
        and (
            (wanted is not null and rag._is_superuser())
            or exists (
                select
                from rag.tenant_grants as g
                where
                    (g.tenant_id = t.tenant_id or (wanted is not null and g.tenant_id is null))
                    and pg_has_role(rag._role(), g.role, 'member')
            )
        )
$$;

comment on function rag._allowed_tenant(text) is
    'The id of the tenant of that name if the caller may act as it, otherwise null.';

create or replace function rag._policy_tenant()
    returns int
    language sql
    stable
    parallel restricted
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
    -- A placeholder setting reads '' after the transaction that set it: nullif, or every later
    -- query of a pooled connection would act as a tenant named ''.
    select rag._allowed_tenant(nullif(current_setting('rag.tenant', true), ''))
$$;

comment on function rag._policy_tenant() is
    'What row-level security asks: the id of the caller''s tenant, or null, which matches no row.';

create or replace function rag._context(out tenant_id int, out partition_id int)
    returns record
    language plpgsql
    stable
    parallel restricted
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_wanted text := nullif(current_setting('rag.tenant', true), '');
    v_tenant int := rag._allowed_tenant(v_wanted);
begin
    if v_tenant is null and v_wanted is null then
        raise exception 'no tenant is set' using
            errcode = 'RG001',
            detail = format('Role %s has no tenant of its own.', rag._role()),
            hint = 'Call rag.set_tenant(name) first; an administrator grants tenants by '
            'rag.grant_tenant(role, tenant).';
    end if;
    if v_tenant is null then
        perform rag._refuse_tenant(v_wanted);
    end if;
    select t.tenant_id, t.partition_id into tenant_id, partition_id
    from rag.tenants as t
    where t.tenant_id = v_tenant;
end
$$;

comment on function rag._context() is
    'The caller''s tenant and the partition that holds it; an error where there is none.';

create or replace function rag._refuse_tenant(wanted text)
    returns void
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    -- Who may not act as it must not learn whether it exists.
    if rag._is_superuser() then
        raise exception 'tenant "%" does not exist', wanted using
            errcode = 'RG002',
            detail = format('No row of rag.tenants has the name %L.', wanted),
            hint = format('Create it: select rag.create_tenant(%L).', wanted);
    end if;
    raise exception 'role % may not act as tenant "%"', rag._role(), wanted using
        errcode = 'insufficient_privilege',
        detail = 'The role has no grant for a tenant of that name.',
        hint = format('An administrator grants it: select rag.grant_tenant(%L, %L).',
            rag._role(), wanted);
end
$$;

comment on function rag._refuse_tenant(text) is
    'Raise the error that a caller gets for a tenant he may not act as.';

create or replace function rag.set_tenant(name text, is_local boolean default false)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    if set_tenant.name is null or rag._allowed_tenant(set_tenant.name) is null then
        perform rag._refuse_tenant(coalesce(set_tenant.name, ''));
    end if;
    perform set_config('rag.tenant', set_tenant.name, coalesce(set_tenant.is_local, false));
end
$$;

comment on function rag.set_tenant(text, boolean) is
    'Act as this tenant from now on (is_local: until the transaction ends), or be refused.';

create or replace function rag.current_tenant()
    returns text
    language sql
    stable
    parallel restricted
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
    select t.name
    from rag.tenants as t
    where t.tenant_id = (select c.tenant_id from rag._context() as c)
$$;

comment on function rag.current_tenant() is
    'The tenant that the caller acts as; an error where there is none.';

create or replace function rag._tenant_id(name text)
    returns int
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_tenant int;
begin
    select t.tenant_id into v_tenant from rag.tenants as t where t.name = _tenant_id.name;
    if v_tenant is null then
        raise exception 'tenant "%" does not exist', _tenant_id.name using
            errcode = 'RG002',
            detail = format('No row of rag.tenants has the name %L.', _tenant_id.name),
            hint = format('Mind upper and lower case, or create it: select rag.create_tenant(%L).',
                _tenant_id.name);
    end if;
    return v_tenant;
end
$$;

comment on function rag._tenant_id(text) is
    'For administration: the id of the tenant of that name, whoever asks, or an error.';

create or replace function rag.create_tenant(name text)
    returns int
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_partitions int[];
    v_tenant int;
begin
    if create_tenant.name is null
        or create_tenant.name <> btrim(create_tenant.name)
        or length(create_tenant.name) not between 1 and 200
    then
        raise exception 'invalid tenant name' using
            errcode = 'invalid_parameter_value',
            detail = format('The name is %L.', create_tenant.name),
            hint = 'A name has 1 to 200 characters and no spaces around it.';
    end if;
    select array_agg(p.partition_id order by p.partition_id) into v_partitions
    from rag.partitions as p
    where p.kind = 'shared';
    insert into rag.tenants (name, partition_id)
    values (create_tenant.name, v_partitions[1])
    on conflict on constraint tenants_name_key do nothing
    returning tenants.tenant_id into v_tenant;
    if v_tenant is null then
        raise exception 'tenant "%" exists already', create_tenant.name using
            errcode = 'duplicate_object',
            detail = format('rag.tenants has a row of the name %L.', create_tenant.name),
            hint = 'Choose another name, or go on with the tenant that is there.';
    end if;
    -- In turn, so that every shared partition holds as many tenants as the next one.
    update rag.tenants as t
    set partition_id = v_partitions[1 + v_tenant % cardinality(v_partitions)]
    where t.tenant_id = v_tenant;
    perform rag._add_collection(v_tenant, 'default', 'markdown', 800, 100, 'english');
    -- 100 words is a guess, put right by rag._fold_statistics. Not left to the first put: others
    -- would wait until that one commits.
    insert into rag.lexical_statistics (tenant_id, reference_length) values (v_tenant, 100);
    return v_tenant;
end
$$;

comment on function rag.create_tenant(text) is
    'Create a tenant with its collection ''default''; returns its id. Grant it to roles next.';

create or replace function rag.drop_tenant(name text)
    returns table (kind text, rows bigint)
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
    v_tenant int := rag._tenant_id(drop_tenant.name);
    v_partition int;
    v_rows bigint;
begin
    -- The row lock keeps writers out: they take it in share mode (rag._lock_tenant).
    select t.partition_id into v_partition
    from rag.tenants as t
    where t.tenant_id = v_tenant
    for update;
    if not found then
        perform rag._lock_tenant(v_tenant);
    end if;
    -- Jobs before embeddings: whoever completes one right now holds its row (rag.complete_jobs),
    -- and locked in his order, or the two could wait for each other.
    perform from rag.jobs as j where j.tenant_id = v_tenant order by j.job_id for update;
    delete from rag.jobs as j where j.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'jobs', v_rows;
    if rag.cancel_move(drop_tenant.name) then
        v_rows := 1;
    else
        v_rows := 0;
    end if;
    return query select 'moves', v_rows;
    delete from rag.queries as q where q.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'queries', v_rows;
    delete from rag.query_embeddings as e where e.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'query_embeddings', v_rows;
    delete from rag.completions as r where r.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'completions', v_rows;
    delete from rag.embeddings as e where e.partition_id = v_partition and e.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'embeddings', v_rows;
    delete from rag.lexemes as l where l.partition_id = v_partition and l.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'lexemes', v_rows;
    delete from rag.lexeme_deltas as s where s.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'lexeme_deltas', v_rows;
    delete from rag.lexeme_statistics as s where s.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'lexeme_statistics', v_rows;
    delete from rag.lexical_statistics as s where s.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'lexical_statistics', v_rows;
    delete from rag.eval_results as e where e.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'eval_results', v_rows;
    delete from rag.eval_runs as e where e.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'eval_runs', v_rows;
    delete from rag.judgements as e where e.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'judgements', v_rows;
    delete from rag.eval_queries as e where e.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'eval_queries', v_rows;
    delete from rag.eval_sets as e where e.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'eval_sets', v_rows;
    delete from rag.chunks as c where c.partition_id = v_partition and c.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'chunks', v_rows;
    delete from rag.documents as d where d.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'documents', v_rows;
    delete from rag.collections as c where c.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'collections', v_rows;
    delete from rag.tenant_grants as g where g.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'tenant_grants', v_rows;
    delete from rag.tenants as t where t.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'tenants', v_rows;
end
$$;

comment on function rag.drop_tenant(text) is
    'Erase a tenant and all that is his; reports the rows removed by kind.';

create or replace function rag._require_fresh_snapshots(what text)
    returns void
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'this needs isolation level read committed' using
            errcode = 'object_not_in_prerequisite_state',
            detail = format(
                'It is %s in a %s transaction, which would not see what others committed while it '
                'waited for them, and leave that behind.',
                _require_fresh_snapshots.what, current_setting('transaction_isolation')
            ),
            hint = 'begin isolation level read committed, or for a call outside of a transaction: '
            'set default_transaction_isolation = ''read committed''.';
    end if;
end
$$;

comment on function rag._require_fresh_snapshots(text) is
    'The error for what locks out writers and then has to see all they wrote.';

create or replace function rag._lock_tenant(tenant_id int)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
begin
    perform from rag.tenants as t where t.tenant_id = _lock_tenant.tenant_id for key share;
    if not found then
        raise exception 'the tenant was dropped meanwhile' using
            errcode = 'RG002',
            detail = 'Another session dropped the tenant while this one was writing to it.',
            hint = 'Nothing was written.';
    end if;
end
$$;

comment on function rag._lock_tenant(int) is
    'Keep the tenant from being dropped or moved until this transaction ends.';

create or replace function rag._known_role(role text)
    returns regrole
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    if _known_role.role is null then
        raise exception 'no role is given' using
            errcode = 'invalid_parameter_value',
            detail = 'role is null.',
            hint = 'Name a role of the server; select rolname from pg_roles lists them.';
    end if;
    if to_regrole(quote_ident(_known_role.role)) is null then
        raise exception 'role "%" does not exist', _known_role.role using
            errcode = 'undefined_object',
            detail = 'Tenants are granted to roles of the server.',
            hint = format('create role %I login in role rag_app', _known_role.role);
    end if;
    return to_regrole(quote_ident(_known_role.role));
end
$$;

comment on function rag._known_role(text) is 'The role of that name, or an error.';

create or replace function rag.grant_tenant(role text, tenant text)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    insert into rag.tenant_grants (role, tenant_id)
    values (rag._known_role(grant_tenant.role), rag._tenant_id(grant_tenant.tenant))
    on conflict on constraint tenant_grants_are_unique do nothing;
end
$$;

comment on function rag.grant_tenant(text, text) is
    'Let a role act as a tenant; granting twice is no error.';

create or replace function rag.revoke_tenant(role text, tenant text)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    delete from rag.tenant_grants as g
    where
        g.role = rag._known_role(revoke_tenant.role)
        and g.tenant_id = rag._tenant_id(revoke_tenant.tenant);
    return found;
end
$$;

comment on function rag.revoke_tenant(text, text) is
    'Take a tenant from a role, at once and for running sessions too; true if it had it.';

create or replace function rag.grant_all_tenants(role text)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    insert into rag.tenant_grants (role, tenant_id)
    values (rag._known_role(grant_all_tenants.role), null)
    on conflict on constraint tenant_grants_are_unique do nothing;
end
$$;

comment on function rag.grant_all_tenants(text) is
    'Let a trusted service act as every tenant; it must name one by rag.set_tenant each time.';

create or replace function rag.revoke_all_tenants(role text)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    delete from rag.tenant_grants as g
    where g.role = rag._known_role(revoke_all_tenants.role) and g.tenant_id is null;
    return found;
end
$$;

comment on function rag.revoke_all_tenants(text) is
    'Undo rag.grant_all_tenants; grants of single tenants stay. True if it had it.';
