-- Usage: how much each tenant has, counted as it changes, and held against its quotas.

create or replace function rag._measure(tenant_id int, partition_id int, documents bigint[])
    returns bigint[]
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
begin
    if _measure.documents = '{}' then
        return '{0,0,0}';
    end if;
    return (
        select array[
            count(*),
            (
                select count(*)
                from rag.chunks as c
                where
                    c.partition_id = _measure.partition_id
                    and c.tenant_id = _measure.tenant_id
                    and c.document_id = any(_measure.documents)
            ),
            -- Read from the pointers of what is toasted.
            coalesce(sum(octet_length(d.content)), 0) + (
                select coalesce(sum(octet_length(p.content)), 0)
                from rag.past_documents as p
                where
                    p.tenant_id = _measure.tenant_id
                    and p.document_id = any(_measure.documents)
            )
        ]
        from rag.documents as d
        where d.tenant_id = _measure.tenant_id and d.document_id = any(_measure.documents)
    );
end
$$;

comment on function rag._measure(int, int, bigint[]) is
    'What these documents count: {documents, chunks, bytes}, for rag._count_usage. The bytes are '
    'those of past versions, too.';

create or replace function rag._usage(
    tenant_id int, out documents bigint, out chunks bigint, out bytes bigint
)
    returns record
    language sql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select
        sum(x.documents)::bigint, sum(x.chunks)::bigint, sum(x.bytes)::bigint
    from (
        select u.documents, u.chunks, u.bytes
        from rag.tenant_usage as u
        where u.tenant_id = _usage.tenant_id
        union all
        select d.documents, d.chunks, d.bytes
        from rag.usage_deltas as d
        where d.tenant_id = _usage.tenant_id
    ) as x
$$;

comment on function rag._usage(int) is 'What a tenant has, deltas included.';

create or replace function rag._queue_for_quota(
    tenant_id int, documents bigint, bytes bigint
)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    -- One plan for a session: planning opens every index.
    set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    -- As many transactions as there can be, each with as much as it may bring without queueing,
    -- bring together what is left free for them.
    v_writers constant int := current_setting('max_connections')::int
        + current_setting('max_prepared_transactions')::int;
    v_tenant rag.tenants;
    v_is_near boolean;
begin
    select t.* into v_tenant
    from rag.tenants as t
    where t.tenant_id = _queue_for_quota.tenant_id;
    if v_tenant.max_documents is null
        and v_tenant.max_chunks is null
        and v_tenant.max_bytes is null
    then
        return;
    end if;
    perform rag._require_fresh_snapshots('a put under a quota');
    select
        bool_or(
            m.used > m.allowed - m.free
            or coalesce((m.own + m.coming) * v_writers > m.free, true)
        )
        into v_is_near
    from rag._usage(_queue_for_quota.tenant_id) as u
    cross join lateral (
        -- What this transaction has noted, savepoints included: their ids come after its own.
        select
            coalesce(sum(d.documents), 0) as documents, coalesce(sum(d.chunks), 0) as chunks,
            coalesce(sum(d.bytes), 0) as bytes
        from rag.usage_deltas as d
        where
            d.tenant_id = _queue_for_quota.tenant_id
            and age(d.xmin) <= age(pg_current_xact_id_if_assigned()::xid)
    ) as o
    cross join lateral (
        values
        (
            u.documents, o.documents, _queue_for_quota.documents, v_tenant.max_documents,
            greatest(v_tenant.max_documents * 0.1, 100)
        ),
        -- How many chunks there will be is not known yet.
        (
            u.chunks, o.chunks, _queue_for_quota.documents + _queue_for_quota.bytes / 200,
            v_tenant.max_chunks, greatest(v_tenant.max_chunks * 0.1, 500)
        ),
        (
            u.bytes, o.bytes, _queue_for_quota.bytes, v_tenant.max_bytes,
            greatest(v_tenant.max_bytes * 0.1, 500000)
        )
    ) as m (used, own, coming, allowed, free)
    where m.allowed is not null;
    if v_is_near then
        perform
        from rag.tenant_usage as u
        where u.tenant_id = _queue_for_quota.tenant_id
        for update;
    end if;
end
$$;

comment on function rag._queue_for_quota(int, bigint, bigint) is
    'Where a tenant is near its quota, or this transaction brings much or (null) nobody knows how '
    'much, one writer at a time: or several would fill what is left.';

create or replace function rag._count_usage(tenant_id int, before bigint[], after bigint[])
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_tenant rag.tenants;
    v_use record;
    v_delta bigint;
    v_measure record;
begin
    if _count_usage.before = _count_usage.after then
        return;
    end if;
    insert into rag.usage_deltas (tenant_id, documents, chunks, bytes)
    select
        _count_usage.tenant_id, _count_usage.after[1] - _count_usage.before[1],
        _count_usage.after[2] - _count_usage.before[2],
        _count_usage.after[3] - _count_usage.before[3]
    returning delta_id into v_delta;
    -- One at a time takes in what is there; whoever comes second leaves it to the first. Not in a
    -- transaction that could not see what another one has taken in meanwhile.
    if v_delta % 32 = 0 and current_setting('transaction_isolation') = 'read committed' then
        perform
        from rag.tenant_usage as u
        where u.tenant_id = _count_usage.tenant_id
        for update skip locked;
        if found then
            with taken as (
                delete from rag.usage_deltas as d
                where d.tenant_id = _count_usage.tenant_id
                returning d.documents, d.chunks, d.bytes
            )
            update rag.tenant_usage as u
            set
                documents = u.documents + s.documents,
                chunks = u.chunks + s.chunks,
                bytes = u.bytes + s.bytes
            from (
                select
                    sum(t.documents) as documents, sum(t.chunks) as chunks, sum(t.bytes) as bytes
                from taken as t
            ) as s
            where u.tenant_id = _count_usage.tenant_id;
        end if;
    end if;
    -- Now it is known how much it was.
    if _count_usage.after[1] > _count_usage.before[1]
        or _count_usage.after[2] > _count_usage.before[2]
        or _count_usage.after[3] > _count_usage.before[3]
    then
        perform rag._queue_for_quota(_count_usage.tenant_id, 0, 0);
    end if;
    select t.* into v_tenant
    from rag.tenants as t
    where t.tenant_id = _count_usage.tenant_id;
    if v_tenant.max_documents is null
        and v_tenant.max_chunks is null
        and v_tenant.max_bytes is null
    then
        return;
    end if;
    v_use := rag._usage(_count_usage.tenant_id);
    -- Whoever has too much already may still replace and delete.
    for v_measure in
        select m.name, m.used, m.allowed
        from (values
            (1, 'documents', v_use.documents, v_tenant.max_documents),
            (2, 'chunks', v_use.chunks, v_tenant.max_chunks),
            (3, 'bytes', v_use.bytes, v_tenant.max_bytes)
        ) as m (place, name, used, allowed)
        where
            m.used > m.allowed
            and _count_usage.after[m.place] > _count_usage.before[m.place]
    loop
        raise exception 'the quota of % is reached', v_measure.name using
            errcode = 'RG020',
            detail = format('Tenant %L would have %s %s with this; the limit is %s.',
                v_tenant.name, v_measure.used, v_measure.name, v_measure.allowed),
            hint = 'Nothing was written. Delete what is not needed (rag.usage() tells what there '
            'is), or have an administrator raise it by rag.set_quota.';
    end loop;
end
$$;

comment on function rag._count_usage(int, bigint[], bigint[]) is
    'Note that what a tenant has went from one measure to the other (rag._measure), or the error '
    'where that is more than its quota.';
