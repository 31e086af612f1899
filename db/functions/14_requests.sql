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
