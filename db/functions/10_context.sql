-- The context: which tenant the caller is acting as.
--
-- The setting rag.tenant only says which tenant the caller wants. Whether he may is read from
-- rag.tenant_grants every time, so that setting it by hand gains nothing. The setting
-- rag.authenticated is what a verified token leaves behind, sealed (13_seals.sql); where it is not
-- empty nothing else counts.

create or replace function rag._role()
    returns regrole
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    -- Inside a definer function current_user is the owner; SET ROLE is seen in the setting.
    return to_regrole(quote_ident(
        case current_setting('role') when 'none' then session_user::text
        else current_setting('role') end
    ));
end
$$;

comment on function rag._role() is
    'The role the caller acts as: that of set role, otherwise the login role.';

create or replace function rag._is_superuser()
    returns boolean
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    return (select r.rolsuper from pg_roles as r where r.oid = rag._role());
end
$$;

comment on function rag._is_superuser() is 'Whether the role the caller acts as is a superuser.';

create or replace function rag._allowed(wanted text)
    returns rag.tenants
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    -- One plan for a session: planning is most of the work, and opens every index.
    set plan_cache_mode = force_generic_plan
as $$
declare
    -- Asked for in each statement of a search: looked up once, for all of the grants.
    v_role oid := rag._role();
begin
    -- With nothing wanted it is 'default', for roles to which just that was granted: a service
    -- that may act as everybody and forgot to say as whom gets an error instead.
    return (
        select t
        from rag.tenants as t
        where
            t.name = coalesce(_allowed.wanted, 'default')
            -- The superuser last: what tells takes locks on four relations of the catalog.
            and (
                exists (
                    select
                    from rag.tenant_grants as g
                    where
                        (
                            g.tenant_id = t.tenant_id
                            or (_allowed.wanted is not null and g.tenant_id is null)
                        )
                        and pg_has_role(v_role, g.role::oid, 'member')
                )
                or (_allowed.wanted is not null and rag._is_superuser())
            )
    );
end
$$;

comment on function rag._allowed(text) is
    'The tenant of that name if the caller may act as it, otherwise null.';

create or replace function rag._allowed_tenant(wanted text)
    returns int
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    return (rag._allowed(_allowed_tenant.wanted)).tenant_id;
end
$$;

comment on function rag._allowed_tenant(text) is
    'The id of the tenant of that name if the caller may act as it, otherwise null.';

create or replace function rag._caller_tenant()
    returns rag.tenants
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    -- One plan for a session: planning opens every index.
    set plan_cache_mode = force_generic_plan
as $$
declare
    v_tenant int;
begin
    -- A placeholder setting reads '' after the transaction that set it: nullif, or every later
    -- query of a pooled connection would act as a tenant named ''.
    if current_setting('rag.authenticated', true) <> '' then
        v_tenant := rag._unsealed_tenant(current_setting('rag.authenticated'));
        return (select t from rag.tenants as t where t.tenant_id = v_tenant);
    end if;
    return rag._allowed(nullif(current_setting('rag.tenant', true), ''));
end
$$;

comment on function rag._caller_tenant() is
    'The tenant that the settings name, if the caller may act as it, otherwise null.';

create or replace function rag._caller()
    returns int
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    return (rag._caller_tenant()).tenant_id;
end
$$;

comment on function rag._caller() is
    'The id of the tenant that the settings name, if the caller may act as it, otherwise null.';

create or replace function rag._policy_tenant()
    returns int
    language plpgsql
    stable
    parallel restricted
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_tenant rag.tenants := rag._caller_tenant();
begin
    return case when not v_tenant.is_suspended then v_tenant.tenant_id end;
end
$$;

comment on function rag._policy_tenant() is
    'What row-level security asks: the id of the caller''s tenant, or null, which matches no row.';

create or replace function rag._policy_partition()
    returns int
    language plpgsql
    stable
    parallel restricted
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    return (rag._caller_tenant()).partition_id;
end
$$;

comment on function rag._policy_partition() is
    'What row-level security asks of partitioned tables: where the caller''s tenant is in this '
    'snapshot. A snapshot from before a move would see his old rows and the copies.';

create or replace function rag._acting_tenant()
    returns rag.tenants
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_tenant rag.tenants := rag._caller_tenant();
begin
    if v_tenant.tenant_id is null then
        perform rag._refuse_caller();
    end if;
    if v_tenant.is_suspended then
        perform rag._refuse_suspended(v_tenant.tenant_id);
    end if;
    return v_tenant;
end
$$;

comment on function rag._acting_tenant() is
    'The caller''s tenant, all that is known of it; an error where there is none.';

create or replace function rag._context(out tenant_id int, out partition_id int)
    returns record
    language plpgsql
    stable
    parallel restricted
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_tenant rag.tenants := rag._acting_tenant();
begin
    tenant_id := v_tenant.tenant_id;
    partition_id := v_tenant.partition_id;
end
$$;

comment on function rag._context() is
    'The caller''s tenant and the partition that holds it; an error where there is none.';

create or replace function rag._refuse_caller()
    returns void
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    if current_setting('rag.authenticated', true) <> '' then
        raise exception 'the token does not count here, or no longer' using
            errcode = 'invalid_authorization_specification',
            detail = 'It has expired, its key was retired, its tenant is gone, or the setting '
            'rag.authenticated comes from another transaction, session or role.',
            hint = 'Call rag.authenticate(token) again, in the transaction that needs it.';
    end if;
    if coalesce(current_setting('rag.tenant', true), '') = '' then
        raise exception 'no tenant is set' using
            errcode = 'RG001',
            detail = format('Role %s has no tenant of its own.', rag._role()),
            hint = 'Call rag.set_tenant(name) first, or rag.authenticate(token), in the same '
            'transaction; an administrator grants tenants by rag.grant_tenant(role, tenant).';
    end if;
    perform rag._refuse_tenant(current_setting('rag.tenant'));
end
$$;

comment on function rag._refuse_caller() is
    'Raise the error that a caller gets who is no tenant.';

create or replace function rag._refuse_suspended(tenant_id int)
    returns void
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_tenant rag.tenants;
begin
    select t.* into v_tenant
    from rag.tenants as t
    where t.tenant_id = _refuse_suspended.tenant_id;
    raise exception 'tenant "%" is suspended', v_tenant.name using
        errcode = 'RG022',
        detail = coalesce(v_tenant.suspended_because, 'No reason was given.'),
        hint = 'All that it has is kept; an administrator lets it go on by '
        'rag.resume_tenant(name).';
end
$$;

comment on function rag._refuse_suspended(int) is
    'Raise the error that a suspended tenant gets.';

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

create or replace function rag._refuse_null(what text)
    returns void
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    raise exception 'no % is given', _refuse_null.what using
        errcode = 'invalid_parameter_value',
        detail = format('The name of the %s is null.', _refuse_null.what),
        hint = format('Give the name of the %s as text.', _refuse_null.what);
end
$$;

comment on function rag._refuse_null(text) is 'Raise the error for a name that is null.';

create or replace function rag.set_tenant(name text, is_local boolean default false)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    if set_tenant.name is null then
        perform rag._refuse_null('tenant');
    end if;
    if rag._allowed_tenant(set_tenant.name) is null then
        perform rag._refuse_tenant(set_tenant.name);
    end if;
    perform set_config('rag.tenant', set_tenant.name, coalesce(set_tenant.is_local, false));
    -- Who says whom he acts as has done with the token.
    perform set_config('rag.authenticated', '', coalesce(set_tenant.is_local, false));
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
