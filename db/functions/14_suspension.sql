-- Suspending tenants, and letting them go on.

create or replace function rag.suspend_tenant(name text, reason text default null)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_tenant int := rag._tenant_id(suspend_tenant.name);
begin
    update rag.tenants as t
    set is_suspended = true, suspended_because = left(suspend_tenant.reason, 1000)
    where t.tenant_id = v_tenant and not t.is_suspended;
    return found;
end
$$;

comment on function rag.suspend_tenant(text, text) is
    'Refuse all that a tenant asks for and embed nothing of it; nothing is lost. False if it was '
    'suspended already.';

create or replace function rag.resume_tenant(name text)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_tenant int := rag._tenant_id(resume_tenant.name);
begin
    perform rag._ring();
    update rag.tenants as t
    set is_suspended = false, suspended_because = null
    where t.tenant_id = v_tenant and t.is_suspended;
    return found;
end
$$;

comment on function rag.resume_tenant(text) is
    'Let a suspended tenant go on; false if it was not suspended.';
