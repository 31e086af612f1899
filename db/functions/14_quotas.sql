-- Quotas: how much a tenant may have and do, beside what it has and does.

create or replace function rag.set_quota(
    tenant text,
    documents bigint default null,
    chunks bigint default null,
    bytes bigint default null,
    puts_per_minute int default null,
    searches_per_minute int default null
)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_tenant int := rag._tenant_id(set_quota.tenant);
begin
    if least(
        set_quota.documents, set_quota.chunks, set_quota.bytes, set_quota.puts_per_minute,
        set_quota.searches_per_minute
    ) < 0 or greatest(set_quota.puts_per_minute, set_quota.searches_per_minute) > 100000000 then
        raise exception 'invalid quota' using
            errcode = 'invalid_parameter_value',
            detail = 'One of the numbers is below 0, or is more than 100,000,000 a minute.',
            hint = 'A quota is 0 or more, or null for none. To stop a tenant use '
            'rag.suspend_tenant(name).';
    end if;
    update rag.tenants as t
    set
        max_documents = set_quota.documents,
        max_chunks = set_quota.chunks,
        max_bytes = set_quota.bytes,
        puts_per_minute = set_quota.puts_per_minute,
        searches_per_minute = set_quota.searches_per_minute
    where t.tenant_id = v_tenant;
    perform rag._create_counters(v_tenant);
end
$$;

comment on function rag.set_quota(text, bigint, bigint, bigint, int, int) is
    'Limit what a tenant may have and do; what is not given has no limit. Puts are documents put.';

create or replace function rag.usage()
    returns table (
        tenant text,
        documents bigint,
        chunks bigint,
        bytes bigint,
        puts_this_minute bigint,
        searches_this_minute bigint,
        max_documents bigint,
        max_chunks bigint,
        max_bytes bigint,
        puts_per_minute int,
        searches_per_minute int,
        is_suspended boolean
    )
    language plpgsql
    stable
    parallel restricted
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_tenants int[] := rag._overseen_tenants();
begin
    return query
    select
        t.name,
        u.documents,
        u.chunks,
        u.bytes,
        case
            when t.puts_per_minute is not null then rag._requests_this_minute(t.tenant_id, 'puts')
        end,
        case
            when t.searches_per_minute is not null
                then rag._requests_this_minute(t.tenant_id, 'searches')
        end,
        t.max_documents,
        t.max_chunks,
        t.max_bytes,
        t.puts_per_minute,
        t.searches_per_minute,
        t.is_suspended
    from rag.tenants as t
    cross join lateral rag._usage(t.tenant_id) as u
    where t.tenant_id = any(v_tenants)
    order by t.name;
end
$$;

comment on function rag.usage() is
    'What tenants have and may have: all of them for administrators, otherwise the caller''s. '
    'Requests are counted where there is a limit for them.';
