-- Tenants: who exists; creating, holding and erasing one.

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
    if _tenant_id.name is null then
        perform rag._refuse_null('tenant');
    end if;
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
    if create_tenant.name is null then
        perform rag._refuse_null('tenant');
    end if;
    if create_tenant.name <> btrim(create_tenant.name)
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
    insert into rag.lexeme_statistics (tenant_id, lexeme, total_length, reference_length)
    values (v_tenant, '', 0, 100);
    insert into rag.tenant_usage (tenant_id) values (v_tenant);
    return v_tenant;
end
$$;

comment on function rag.create_tenant(text) is
    'Create a tenant with its collection ''default''; returns its id. Grant it to roles next.';

create or replace function rag._erase_tenant(name text)
    returns table (kind text, rows bigint)
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
    v_tenant int := rag._tenant_id(_erase_tenant.name);
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
    if rag.cancel_move(_erase_tenant.name) then
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
    delete from rag.postings as p where p.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'postings', v_rows;
    delete from rag.posting_sets as s where s.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'posting_sets', v_rows;
    delete from rag.lexeme_statistics as s where s.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'lexeme_statistics', v_rows;
    delete from rag.usage_deltas as d where d.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'usage_deltas', v_rows;
    delete from rag.tenant_usage as u where u.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'tenant_usage', v_rows;
    perform rag._drop_counters(v_tenant);
    update rag.token_keys as k
    set tenants = array_remove(k.tenants, v_tenant)
    where v_tenant = any(k.tenants);
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
    delete from rag.uploads as u where u.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'uploads', v_rows;
    delete from rag.run_documents as r where r.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'run_documents', v_rows;
    delete from rag.runs as r where r.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'runs', v_rows;
    delete from rag.past_embeddings as e where e.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'past_embeddings', v_rows;
    delete from rag.past_chunks as c where c.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'past_chunks', v_rows;
    delete from rag.past_documents as d where d.tenant_id = v_tenant;
    get diagnostics v_rows = row_count;
    return query select 'past_documents', v_rows;
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

comment on function rag._erase_tenant(text) is
    'Delete every row of a tenant; returns how many there were, by kind.';

create or replace function rag.drop_tenant(name text)
    returns table (kind text, rows bigint)
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
    set jit = off
as $$
#variable_conflict use_column
declare
    v_tenant int := rag._tenant_id(drop_tenant.name);
    v_partition int := (select t.partition_id from rag.tenants as t where t.tenant_id = v_tenant);
    v_removed jsonb := '{}';
    v_kind record;
begin
    for v_kind in select e.kind, e.rows from rag._erase_tenant(drop_tenant.name) as e loop
        kind := v_kind.kind;
        rows := v_kind.rows;
        v_removed := v_removed || jsonb_build_object(v_kind.kind, v_kind.rows);
        return next;
    end loop;
    -- The planner's statistics still hold samples of his rows: rag.maintain sees to it.
    insert into rag.erasures (erased_id, partition_id, erased_by, removed)
    values (v_tenant, v_partition, rag._role()::text, v_removed);
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
