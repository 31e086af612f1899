-- Quotas: how much a tenant may have and do, what it has, and suspending it.

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
            coalesce(sum(octet_length(d.content)), 0)
        ]
        from rag.documents as d
        where d.tenant_id = _measure.tenant_id and d.document_id = any(_measure.documents)
    );
end
$$;

comment on function rag._measure(int, int, bigint[]) is
    'What these documents count: {documents, chunks, bytes}, for rag._count_usage.';

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

-- Requests in a minute. They are counted by sequences: what nextval has given is given, so a
-- rollback gives no request back; nobody waits for anybody; and there is nothing to vacuum. A
-- sequence holds the minute and the requests in it, in one number: minute × 1e9 + requests. It is
-- not logged: a crash forgets the requests of its minute.

create or replace function rag._counter(tenant_id int, kind text)
    returns regclass
    language sql
    stable
    parallel restricted
    security invoker
return to_regclass(format('rag_data.%I', kind || '_t' || tenant_id));

comment on function rag._counter(int, text) is
    'The sequence that counts a tenant''s puts or searches, or null.';

create or replace function rag._create_counters(tenant_id int)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_name text;
begin
    -- They stay where a limit is lifted: requests that have read the limit still count.
    for v_name in
        select k.kind || '_t' || t.tenant_id
        from rag.tenants as t
        cross join lateral (
            values ('puts', t.puts_per_minute), ('searches', t.searches_per_minute)
        ) as k (kind, allowed)
        where
            t.tenant_id = _create_counters.tenant_id
            and k.allowed is not null
            and rag._counter(t.tenant_id, k.kind) is null
    loop
        execute format('create unlogged sequence rag_data.%I', v_name);
    end loop;
end
$$;

comment on function rag._create_counters(int) is
    'Create the sequences that count a tenant''s requests, where it has a limit of them.';

create or replace function rag._drop_counters(tenant_id int)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_kind text;
begin
    foreach v_kind in array '{puts,searches}'::text[] loop
        -- Asked first: "if exists" tells the client what it did not find.
        if rag._counter(_drop_counters.tenant_id, v_kind) is not null then
            execute format('drop sequence %s',
                rag._counter(_drop_counters.tenant_id, v_kind));
        end if;
    end loop;
end
$$;

comment on function rag._drop_counters(int) is
    'Drop the sequences that count a tenant''s requests.';

create or replace function rag._minute()
    returns bigint
    language sql
    stable
    parallel safe
    security invoker
return floor(extract(epoch from clock_timestamp()) / 60)::bigint * 1000000000;

comment on function rag._minute() is 'What a counter of requests holds where this minute begins.';

create or replace function rag._count_requests(tenant_id int, kind text, requests int default 1)
    returns void
    language plpgsql
    -- It changes no row: so it is as stable as what calls it, which is also the search.
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    -- One plan for a session: planning opens every index.
    set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    v_limit int := (
        select
            case _count_requests.kind
                when 'puts' then t.puts_per_minute
                else t.searches_per_minute
            end
        from rag.tenants as t
        where t.tenant_id = _count_requests.tenant_id
    );
    v_counter regclass;
    v_minute bigint;
    v_value bigint;
begin
    if v_limit is null then
        return;
    end if;
    if pg_is_in_recovery() or current_setting('transaction_read_only')::boolean then
        raise exception 'the tenant''s % are counted, which this transaction cannot do',
            _count_requests.kind
        using
            errcode = 'read_only_sql_transaction',
            detail = format('It is read-only, and the tenant has a quota of %s %s a minute.',
                v_limit, _count_requests.kind),
            hint = 'Ask the primary, in a transaction that may write; or have an administrator '
            'lift that quota by rag.set_quota.';
    end if;
    if _count_requests.requests <= v_limit then
        v_counter := rag._counter(_count_requests.tenant_id, _count_requests.kind);
        for i in 1.._count_requests.requests loop
            v_value := nextval(v_counter);
        end loop;
        v_minute := rag._minute();
        -- The first of another minute; also where the clock was put back.
        if v_value not between v_minute and v_minute + 999999999 then
            v_value := setval(v_counter, v_minute + _count_requests.requests);
        end if;
    end if;
    if _count_requests.requests > v_limit or v_value - v_minute > v_limit then
        raise exception 'too many % in a minute', _count_requests.kind using
            errcode = 'RG021',
            detail = format('This is number %s of the minute; the limit is %s.',
                coalesce(v_value - v_minute, _count_requests.requests), v_limit),
            hint = case
                when _count_requests.requests > v_limit
                    then 'Put fewer documents with one call.'
                else format('The next minute begins in %s s.',
                    60 - floor(extract(epoch from clock_timestamp()))::bigint % 60)
            end;
    end if;
end
$$;

comment on function rag._count_requests(int, text, int) is
    'Count a tenant''s puts or searches where they have a limit, or the error when it is reached.';

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

create or replace function rag._requests_this_minute(tenant_id int, kind text)
    returns bigint
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    -- A standby has it not.
    if pg_is_in_recovery()
        or rag._counter(_requests_this_minute.tenant_id, _requests_this_minute.kind) is null
    then
        return null;
    end if;
    return greatest(0, coalesce(
        pg_sequence_last_value(
            rag._counter(_requests_this_minute.tenant_id, _requests_this_minute.kind)
        ) - rag._minute(),
        0
    ));
end
$$;

comment on function rag._requests_this_minute(int, text) is
    'How many puts or searches of a tenant were counted in this minute; null where none are.';

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
