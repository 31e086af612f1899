-- Grants: which role may act as which tenant.

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
