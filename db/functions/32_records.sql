-- Records of work that is done: finished uploads and runs, kept for a time that the tenant sets.

create or replace function rag.set_record_retention(keep interval)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_tenant int := (select c.tenant_id from rag._context() as c);
begin
    if set_record_retention.keep <= interval '0' then
        raise exception 'invalid keep' using
            errcode = 'invalid_parameter_value',
            detail = format('keep is %s.', set_record_retention.keep),
            hint = 'It is how long finished uploads and runs are told of, such as 90 days; null: '
            'for ever.';
    end if;
    update rag.tenants as t
    set keep_records = set_record_retention.keep
    where t.tenant_id = v_tenant;
end
$$;

comment on function rag.set_record_retention(interval) is
    'How long rag.uploads and rag.runs of the caller''s tenant tell of what is finished (null: for '
    'ever; 90 days unless set). rag.purge and rag.maintain delete what is older.';

create or replace function rag._due_records(tenant_id int)
    returns boolean
    language sql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select
        exists (
            select
            from rag.uploads as u
            where
                u.tenant_id = t.tenant_id
                and u.state in ('completed', 'replaced')
                and u.finished_at < statement_timestamp() - t.keep_records
        )
        or exists (
            select
            from rag.runs as r
            where
                r.tenant_id = t.tenant_id
                and r.finished_at < statement_timestamp() - t.keep_records
        )
    from rag.tenants as t
    where t.tenant_id = _due_records.tenant_id
$$;

comment on function rag._due_records(int) is
    'Whether a tenant has records of uploads or runs that are older than he keeps them.';

create or replace function rag._purge_records(tenant_id int, most int)
    returns bigint
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
    v_before timestamptz := (
        select statement_timestamp() - t.keep_records
        from rag.tenants as t
        where t.tenant_id = _purge_records.tenant_id
    );
    v_uploads bigint;
    v_runs bigint;
begin
    -- Not those that failed: their file is nowhere else, and they can be tried again.
    delete from rag.uploads as u
    where
        u.tenant_id = _purge_records.tenant_id
        and u.upload_id = any(array(
            select o.upload_id
            from rag.uploads as o
            where
                o.tenant_id = _purge_records.tenant_id
                and o.state in ('completed', 'replaced')
                and o.finished_at < v_before
            order by o.finished_at
            limit _purge_records.most
            for update skip locked
        ));
    get diagnostics v_uploads = row_count;
    -- With the list of what they brought, so they cannot be rolled back any more.
    delete from rag.runs as r
    where
        r.tenant_id = _purge_records.tenant_id
        and r.run_id = any(array(
            select o.run_id
            from rag.runs as o
            where o.tenant_id = _purge_records.tenant_id and o.finished_at < v_before
            order by o.finished_at
            limit _purge_records.most
            for update skip locked
        ));
    get diagnostics v_runs = row_count;
    return v_uploads + v_runs;
end
$$;

comment on function rag._purge_records(int, int) is
    'Delete up to so many of a tenant''s finished uploads and so many runs that are older than he '
    'keeps them; returns how many.';
