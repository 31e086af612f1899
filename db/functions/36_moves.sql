-- Moves of tenants: from a shared partition to one of their own and back, while they are used.
--
-- The new tables are filled and indexed before they are partitions, so nobody sees or waits for
-- them. Then what changed meanwhile is copied again, until little is left; the rest is done in one
-- transaction that keeps the tenant's writers out: last changes, delete the old rows, attach, and
-- tell where he is now. A search has one snapshot, so it sees him wholly here or wholly there.
--
-- Direct SQL on rag.chunks is planned with the partitions there are, and only then takes the
-- snapshot that it runs with: a switch between the two would hide him from it. So nobody else is in
-- the middle of a statement on the parents when partitions are attached (rag._lock_parents).
--
-- What has changed is told by xmin, the transaction that wrote a row: rag_data.copied_… remembers
-- it for each row that was copied. No writer has to know of moves.

create or replace function rag._move_tables(tenant_id int, partition_id int)
    returns table (
        source regclass,
        parent regclass,
        template regclass,
        child text,
        copied text,
        model_id int
    )
    language sql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select
        format('rag_data.chunks_p%s', t.partition_id)::regclass,
        'rag.chunks'::regclass, 'rag.chunks'::regclass,
        format('chunks_p%s', _move_tables.partition_id),
        format('copied_chunks_p%s', _move_tables.partition_id),
        null::int
    from rag.tenants as t
    where t.tenant_id = _move_tables.tenant_id
    union all
    select
        format('rag_data.lexemes_p%s', t.partition_id)::regclass,
        'rag.lexemes'::regclass, 'rag.lexemes'::regclass,
        format('lexemes_p%s', _move_tables.partition_id),
        format('copied_lexemes_p%s', _move_tables.partition_id),
        null
    from rag.tenants as t
    where t.tenant_id = _move_tables.tenant_id
    union all
    select
        to_regclass(format('rag_data.embeddings_m%s_p%s', m.model_id, t.partition_id)),
        to_regclass(format('rag_data.embeddings_m%s', m.model_id)), 'rag.embeddings'::regclass,
        format('embeddings_m%s_p%s', m.model_id, _move_tables.partition_id),
        format('copied_embeddings_m%s_p%s', m.model_id, _move_tables.partition_id),
        m.model_id
    from rag.tenants as t
    cross join rag.models as m
    where t.tenant_id = _move_tables.tenant_id and m.dropped_at is null
$$;

comment on function rag._move_tables(int, int) is
    'The tables that a tenant is copied from and to, and where copied rows are remembered.';

create or replace function rag._create_copy(
    template regclass, child text, copied text, partition_id int, model_id int
)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    -- Indexes come later: filling a table that has them takes three times as long.
    v_child regclass := rag._create_table(_create_copy.child, _create_copy.template, false);
begin
    -- With these to prove it, attaching reads no row.
    execute format(
        'alter table %s add constraint is_of_partition check (partition_id = %s)',
        v_child, _create_copy.partition_id
    );
    if _create_copy.model_id is not null then
        execute format('alter table %s add constraint is_of_model check (model_id = %s)',
            v_child, _create_copy.model_id);
        perform rag._check_dimensions(v_child, _create_copy.model_id);
    end if;
    -- Logged: emptied by a crash it could not tell any more what is gone from the source.
    execute format(
        'create table rag_data.%I (chunk_id bigint primary key, version xid not null)',
        _create_copy.copied
    );
end
$$;

comment on function rag._create_copy(regclass, text, text, int, int) is
    'A table that will be a partition, not attached yet, and one that remembers what was copied.';

create or replace function rag._copied_columns(template regclass)
    returns text
    language sql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select string_agg(format('%I', a.attname), ', ' order by a.attnum)
    from pg_attribute as a
    where
        a.attrelid = template
        and a.attnum > 0
        and not a.attisdropped
        and a.attname <> 'partition_id'
$$;

comment on function rag._copied_columns(regclass) is
    'The columns of a table as a list for a statement, but for the partition.';

create or replace function rag._copy_rows(
    source regclass,
    template regclass,
    child text,
    copied text,
    tenant_id int,
    partition_id int,
    which text,
    chunks bigint[],
    most int
)
    returns bigint
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_columns text := rag._copied_columns(_copy_rows.template);
    v_values text := v_columns;
    v_rows bigint;
begin
    -- Embeddings from before facets get theirs.
    if _copy_rows.template = 'rag.embeddings'::regclass then
        v_values := replace(v_columns, 'facets', format(
            'case when facets <> ''{0}'' then facets else coalesce(('
            'select nullif(l.facets, ''{}'') from rag_data.lexemes_p%s as l '
            'where l.tenant_id = $1 and l.chunk_id = source.chunk_id), ''{0}'') end',
            (select t.partition_id from rag.tenants as t where t.tenant_id = _copy_rows.tenant_id)
        ));
    end if;
    execute format(
        'with source as materialized ('
        'select s.*, s.xmin as version from %1$s as s where s.tenant_id = $1 and %2$s '
        'order by s.chunk_id limit $3), '
        'copy as (insert into rag_data.%3$I (partition_id, %4$s) '
        'select $4, %6$s from source order by chunk_id) '
        'insert into rag_data.%5$I (chunk_id, version) '
        'select s.chunk_id, s.version from source as s',
        _copy_rows.source, _copy_rows.which, _copy_rows.child, v_columns, _copy_rows.copied,
        v_values
    )
    using _copy_rows.tenant_id, _copy_rows.chunks, _copy_rows.most, _copy_rows.partition_id;
    get diagnostics v_rows = row_count;
    return v_rows;
end
$$;

comment on function rag._copy_rows(
    regclass, regclass, text, text, int, int, text, bigint[], int
) is 'Copy the tenant''s rows of one table for which a condition holds, in the order of chunks.';

create or replace function rag._copy_next(
    source regclass,
    template regclass,
    child text,
    copied text,
    tenant_id int,
    partition_id int,
    most int
)
    returns bigint
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_last bigint;
begin
    execute format('select coalesce(max(c.chunk_id), 0) from rag_data.%I as c', _copy_next.copied)
    into v_last;
    return rag._copy_rows(
        _copy_next.source, _copy_next.template, _copy_next.child, _copy_next.copied,
        _copy_next.tenant_id, _copy_next.partition_id, 's.chunk_id > ($2)[1]', array[v_last],
        _copy_next.most
    );
end
$$;

comment on function rag._copy_next(regclass, regclass, text, text, int, int, int) is
    'Copy so many rows more of one table; returns how many there were.';

create or replace function rag._copy_changes(
    source regclass,
    template regclass,
    child text,
    copied text,
    tenant_id int,
    partition_id int
)
    returns bigint
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    -- A tenant's rows against all that was copied: row by row it would take minutes.
    set enable_nestloop = off
as $$
declare
    v_changed bigint[];
begin
    execute format(
        'select coalesce(array_agg(coalesce(s.chunk_id, c.chunk_id)), ''{}'') '
        'from (select x.chunk_id, x.xmin as version from %s as x where x.tenant_id = $1) as s '
        'full join rag_data.%I as c on c.chunk_id = s.chunk_id '
        'where s.version is null or c.version is null or s.version <> c.version',
        _copy_changes.source, _copy_changes.copied
    )
    into v_changed
    using _copy_changes.tenant_id;
    if v_changed = '{}' then
        return 0;
    end if;
    execute format('delete from rag_data.%I as c where c.tenant_id = $1 and c.chunk_id = any($2)',
        _copy_changes.child)
    using _copy_changes.tenant_id, v_changed;
    execute format('delete from rag_data.%I as c where c.chunk_id = any($1)', _copy_changes.copied)
    using v_changed;
    perform rag._copy_rows(
        _copy_changes.source, _copy_changes.template, _copy_changes.child, _copy_changes.copied,
        _copy_changes.tenant_id, _copy_changes.partition_id, 's.chunk_id = any($2)', v_changed,
        null
    );
    return cardinality(v_changed);
end
$$;

comment on function rag._copy_changes(regclass, regclass, text, text, int, int) is
    'Copy again what has changed in one table since it was copied, what is gone too; returns how '
    'many rows that were.';

create or replace function rag._create_next_index(parent regclass, child regclass, model_id int)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_key text;
    v_index text;
begin
    -- Those of the parent, or attaching would build them while everybody waits.
    select
        pg_get_constraintdef(k.oid),
        substring(pg_get_indexdef(p.indexrelid) from ' USING .*')
    into v_key, v_index
    from pg_index as p
    left join pg_constraint as k on k.conindid = p.indexrelid and k.contype = 'p'
    where
        p.indrelid = _create_next_index.parent
        and not exists (
            select
            from pg_index as c
            where
                c.indrelid = _create_next_index.child
                and substring(pg_get_indexdef(c.indexrelid) from ' USING .*')
                = substring(pg_get_indexdef(p.indexrelid) from ' USING .*')
        )
    order by p.indisprimary desc, p.indexrelid
    limit 1;
    if v_key is not null then
        execute format('alter table %s add %s', _create_next_index.child, v_key);
    elsif v_index is not null then
        execute format('create index on %s %s', _create_next_index.child, v_index);
    elsif _create_next_index.model_id is not null and not exists (
        select
        from pg_index as c
        join pg_class as i on i.oid = c.indexrelid
        join pg_am as a on a.oid = i.relam and a.amname = 'hnsw'
        where c.indrelid = _create_next_index.child
    ) then
        perform rag._create_hnsw(_create_next_index.child, _create_next_index.model_id);
    elsif _create_next_index.model_id is not null and not exists (
        select
        from pg_index as c
        join pg_class as i on i.oid = c.indexrelid
        join pg_am as a on a.oid = i.relam and a.amname = 'gin'
        where c.indrelid = _create_next_index.child
    ) then
        perform rag._create_facet_index(_create_next_index.child);
    else
        return false;
    end if;
    return true;
end
$$;

comment on function rag._create_next_index(regclass, regclass, int) is
    'Create an index that a partition to be still lacks; false if it has them all.';

create or replace function rag._begin_move(tenant text, anew boolean default false)
    returns int
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_tenant int := rag._tenant_id(_begin_move.tenant);
    v_partition int;
    v_table record;
begin
    perform rag._require_fresh_snapshots('a move');
    perform rag._share_models();
    perform rag._lock_tenant(v_tenant);
    -- Asked first: an insert would wait for a session that is moving the tenant.
    if exists (select from rag.moves as m where m.tenant_id = v_tenant) then
        return v_tenant;
    end if;
    if _begin_move.anew is distinct from exists (
        select
        from rag.tenants as t
        join rag.partitions as p on p.partition_id = t.partition_id
        where t.tenant_id = v_tenant and p.kind = 'dedicated'
    ) then
        return null;
    end if;
    insert into rag.moves (tenant_id, partition_id)
    values (v_tenant, nextval(pg_get_serial_sequence('rag.partitions', 'partition_id')))
    on conflict do nothing
    returning moves.partition_id into v_partition;
    if v_partition is not null then
        perform rag._create_embedding_child(m.model_id, t.partition_id)
        from rag.tenants as t
        cross join rag.models as m
        where t.tenant_id = v_tenant and m.dropped_at is null;
        for v_table in select m.* from rag._move_tables(v_tenant, v_partition) as m loop
            perform rag._create_copy(v_table.template, v_table.child, v_table.copied, v_partition,
                v_table.model_id);
        end loop;
    end if;
    return v_tenant;
end
$$;

comment on function rag._begin_move(text, boolean) is
    'Note that a tenant moves to a partition of his own, and make its tables; returns his id, null '
    'if he has one already (anew: if he has none yet). A move that was broken off goes on.';

create or replace function rag._lock_parents(
    tenant_id int, partition_id int, lock_timeout interval
)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set lock_timeout = '500ms'
as $$
declare
    v_until constant timestamptz := clock_timestamp() + _lock_parents.lock_timeout;
    v_parent regclass;
begin
    -- Searches name the partitions themselves and never wait here; writers and direct SQL do. They
    -- lock chunks first, as this does. All parents together are waited for that long, not each.
    for v_parent in
        select m.parent
        from rag._move_tables(_lock_parents.tenant_id, _lock_parents.partition_id) as m
        order by m.model_id nulls first, m.parent::text
    loop
        perform set_config(
            'lock_timeout',
            least(1000000, greatest(
                1, ceil(1000 * extract(epoch from v_until - clock_timestamp()))
            )) || 'ms',
            true
        );
        execute format('lock table only %s in access exclusive mode', v_parent);
    end loop;
    return true;
exception
    when lock_not_available or deadlock_detected then
        return false;
end
$$;

comment on function rag._lock_parents(int, int, interval) is
    'Have nobody else read or write by way of the partitioned tables until this transaction ends; '
    'false, and all of them let go again, if some transaction uses one for longer than that.';

create or replace function rag._lock_tenant_and_parents(
    tenant_id int, partition_id int, lock_timeout interval
)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set lock_timeout = '500ms'
as $$
begin
    -- In the order of writers. Who has read chunks before he writes is in the way of it, and then
    -- let through: the next try may be luckier.
    for i in 1..3 loop
        begin
            perform
            from rag.tenants as t
            where t.tenant_id = _lock_tenant_and_parents.tenant_id
            for update;
            if rag._lock_parents(
                _lock_tenant_and_parents.tenant_id, _lock_tenant_and_parents.partition_id,
                _lock_tenant_and_parents.lock_timeout
            ) then
                return true;
            end if;
            raise exception 'the partitioned tables are in use' using
                errcode = 'lock_not_available',
                detail = 'A transaction has been reading or writing for longer than the timeout.',
                hint = 'The move tries again by itself.';
        exception
            when lock_not_available or deadlock_detected then
                continue;
        end;
    end loop;
    return false;
end
$$;

comment on function rag._lock_tenant_and_parents(int, int, interval) is
    'rag._lock_parents, and the tenant against writers before; false, and nothing locked, if one '
    'or the other is in use all the time.';

create or replace function rag._switch_partition(
    tenant_id int, partition_id int, lock_timeout interval, is_small boolean
)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    -- Whoever waits for a lock makes others wait.
    set lock_timeout = '500ms'
as $$
declare
    v_table record;
begin
    perform rag._create_embedding_child(m.model_id, t.partition_id)
    from rag.tenants as t
    cross join rag.models as m
    where t.tenant_id = _switch_partition.tenant_id and m.dropped_at is null;
    if _switch_partition.is_small then
        if not rag._lock_tenant_and_parents(
            _switch_partition.tenant_id, _switch_partition.partition_id,
            _switch_partition.lock_timeout
        ) then
            return false;
        end if;
    else
        perform from rag.tenants as t where t.tenant_id = _switch_partition.tenant_id for update;
    end if;
    insert into rag.partitions (partition_id, kind) overriding system value
    values (_switch_partition.partition_id, 'dedicated');
    for v_table in
        select m.*
        from rag._move_tables(_switch_partition.tenant_id, _switch_partition.partition_id) as m
    loop
        if to_regclass(format('rag_data.%I', v_table.child)) is null then
            -- A model that came while the tenant moved.
            perform rag._create_embedding_child(v_table.model_id, _switch_partition.partition_id);
            execute format(
                'insert into rag_data.%1$I (partition_id, %2$s) '
                'select $1, %2$s from %3$s as s where s.tenant_id = $2',
                v_table.child, rag._copied_columns(v_table.template), v_table.source
            )
            using _switch_partition.partition_id, _switch_partition.tenant_id;
        elsif to_regclass(format('rag_data.%I', v_table.copied)) is not null then
            perform rag._copy_changes(
                v_table.source, v_table.template, v_table.child, v_table.copied,
                _switch_partition.tenant_id, _switch_partition.partition_id
            );
        end if;
        execute format('delete from %s as s where s.tenant_id = $1', v_table.source)
        using _switch_partition.tenant_id;
    end loop;
    if not rag._lock_parents(
        _switch_partition.tenant_id, _switch_partition.partition_id,
        _switch_partition.lock_timeout
    ) then
        return false;
    end if;
    for v_table in
        select m.*
        from rag._move_tables(_switch_partition.tenant_id, _switch_partition.partition_id) as m
        where to_regclass(format('rag_data.%I', m.copied)) is not null
    loop
        execute format('alter table %s attach partition rag_data.%I for values in (%s)',
            v_table.parent, v_table.child, _switch_partition.partition_id);
        execute format('alter table rag_data.%I drop constraint is_of_partition', v_table.child);
        if v_table.model_id is not null then
            execute format('alter table rag_data.%I drop constraint is_of_model', v_table.child);
        end if;
        execute format('drop table rag_data.%I', v_table.copied);
    end loop;
    update rag.tenants as t
    set
        partition_id = _switch_partition.partition_id,
        hnsw_models = array(
            select m.model_id
            from rag.models as m
            join pg_index as x
                on x.indrelid = to_regclass(format(
                    'rag_data.embeddings_m%s_p%s', m.model_id, _switch_partition.partition_id
                ))
            join pg_class as i on i.oid = x.indexrelid
            join pg_am as a on a.oid = i.relam and a.amname = 'hnsw'
            where x.indisvalid
            order by m.model_id
        )
    where t.tenant_id = _switch_partition.tenant_id;
    delete from rag.moves as m where m.tenant_id = _switch_partition.tenant_id;
    return true;
end
$$;

comment on function rag._switch_partition(int, int, interval, boolean) is
    'The last step of a move: from its commit on the tenant is in his own partition. False, and '
    'to be rolled back, if the parents were in use all the time. For a small tenant they are '
    'locked at once, else when all that takes long is done.';

create or replace function rag._move_on(
    tenant_id int, most int default 10000, lock_timeout interval default '500 ms'
)
    returns text
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
    set jit = off
as $$
#variable_conflict use_column
declare
    v_move rag.moves;
    v_table record;
    v_rows bigint := 0;
    v_is_caught_up boolean;
    v_is_free boolean;
begin
    perform rag._require_fresh_snapshots('a move');
    perform rag._share_models();
    begin
        select m.* into v_move
        from rag.moves as m
        where m.tenant_id = _move_on.tenant_id
        for update nowait;
    exception
        when lock_not_available then
            raise exception 'another session moves or drops this tenant' using
                errcode = 'lock_not_available',
                detail = format('Tenant %s is locked by it in rag.moves.', _move_on.tenant_id),
                hint = 'Nothing is lost. If that session ends before the move does, call '
                'rag.isolate_tenant again: it goes on where it was.';
    end;
    if v_move.tenant_id is null then
        raise exception 'the move was given up' using
            errcode = 'object_not_in_prerequisite_state',
            detail = 'Another session called rag.cancel_move or rag.pool_tenant.',
            hint = 'The tenant is where he was before.';
    end if;
    if v_move.stage = 'copying' then
        for v_table in select t.* from rag._move_tables(v_move.tenant_id, v_move.partition_id) as t
        loop
            continue when to_regclass(format('rag_data.%I', v_table.copied)) is null;
            v_rows := rag._copy_next(
                v_table.source, v_table.template, v_table.child, v_table.copied,
                v_move.tenant_id, v_move.partition_id, _move_on.most
            );
            exit when v_rows > 0;
        end loop;
        update rag.moves as m
        set
            rows = m.rows + v_rows,
            stage = case when v_rows > 0 then m.stage else 'indexing' end
        where m.tenant_id = _move_on.tenant_id;
        return 'copying';
    end if;
    if v_move.stage = 'indexing' then
        for v_table in select t.* from rag._move_tables(v_move.tenant_id, v_move.partition_id) as t
        loop
            continue when to_regclass(format('rag_data.%I', v_table.copied)) is null;
            if rag._create_next_index(
                v_table.template, format('rag_data.%I', v_table.child)::regclass, v_table.model_id
            ) then
                return 'indexing';
            end if;
        end loop;
        for v_table in select t.* from rag._move_tables(v_move.tenant_id, v_move.partition_id) as t
        loop
            continue when to_regclass(format('rag_data.%I', v_table.copied)) is null;
            -- Before it is used: without statistics the first searches would have bad plans.
            execute format('analyze rag_data.%I', v_table.child);
            execute format('analyze rag_data.%I', v_table.copied);
        end loop;
        update rag.moves as m set stage = 'catching up' where m.tenant_id = _move_on.tenant_id;
        return 'indexing';
    end if;
    if v_move.stage = 'catching up' then
        -- While writers write, at most five times, then they wait for the rest.
        for v_table in select t.* from rag._move_tables(v_move.tenant_id, v_move.partition_id) as t
        loop
            continue when to_regclass(format('rag_data.%I', v_table.copied)) is null;
            v_rows := v_rows + rag._copy_changes(
                v_table.source, v_table.template, v_table.child, v_table.copied,
                v_move.tenant_id, v_move.partition_id
            );
        end loop;
        v_is_caught_up := v_rows <= 500 or v_move.passes >= 5;
        -- Could they be locked? With a long reader there the switch would be work for nothing.
        v_is_free := v_is_caught_up and rag._lock_parents(
            v_move.tenant_id, v_move.partition_id, _move_on.lock_timeout
        );
        update rag.moves as m
        set
            rows = m.rows + v_rows,
            passes = m.passes + 1,
            stage = case when v_is_free then 'switching' else m.stage end
        where m.tenant_id = _move_on.tenant_id;
        return case
            when v_is_free then 'switching'
            when v_is_caught_up then 'waiting'
            else 'catching up'
        end;
    end if;
    begin
        if rag._switch_partition(
            v_move.tenant_id, v_move.partition_id, _move_on.lock_timeout,
            -- To delete the old rows of a big one takes seconds, in which everybody would wait.
            v_move.rows < 100000
        ) then
            return 'done';
        end if;
        raise exception 'the partitioned tables are in use' using
            errcode = 'lock_not_available',
            detail = 'A transaction has been reading or writing for longer than the timeout.',
            hint = 'The move tries again by itself.';
    exception
        when lock_not_available or deadlock_detected then
            update rag.moves as m
            set stage = 'catching up'
            where m.tenant_id = _move_on.tenant_id;
            return 'waiting';
    end;
end
$$;

comment on function rag._move_on(int, int, interval) is
    'The next step of a tenant''s move, to be committed; returns copying, indexing, catching up, '
    'switching, waiting (for whoever uses the tables), or done.';

create or replace function rag._pause(waits int, tries int default null)
    returns double precision
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    if _pause.waits >= _pause.tries then
        raise exception 'the tenant cannot be switched to his new partition' using
            errcode = 'lock_not_available',
            detail = format(
                'Tried %s times: each time a transaction went on reading or writing chunks, or '
                'writing to the tenant.', _pause.waits
            ),
            hint = 'Nothing is lost: he is where he was, and his copy is kept. When that '
            'transaction has ended (pg_stat_activity.xact_start), call again; with '
            'lock_timeout => ''5 s'' others wait longer, and the switch succeeds sooner.';
    end if;
    -- Each try makes others wait, so they become rarer.
    return least(5, 0.2 * 1.3 ^ least(_pause.waits, 20));
end
$$;

comment on function rag._pause(int, int) is
    'How many seconds a move rests that has waited so often, or the error when it was to wait no '
    'more.';

-- Procedures, because they commit after each step. They can pin no search path and have no rights
-- of their own; all that needs either is in the functions above.
create or replace procedure rag._begin_as_autocommit()
    language plpgsql
    security invoker
as $$
begin
    -- Inside of a transaction it fails here, before anything is done. No procedure can catch that
    -- or give it words of its own, but its name is in the error's CONTEXT.
    commit;
end
$$;

comment on procedure rag._begin_as_autocommit () is
    'What comes next commits as it goes: the error for who called it inside of begin … commit.';

create or replace procedure rag._move(tenant_id int, tries int, lock_timeout interval)
    language plpgsql
    security invoker
as $$
declare
    v_step text;
    v_waits int := 0;
begin
    loop
        v_step := rag._move_on(_move.tenant_id, lock_timeout => _move.lock_timeout);
        commit;
        exit when v_step operator(pg_catalog.=) 'done';
        if v_step operator(pg_catalog.=) 'waiting' then
            v_waits := v_waits operator(pg_catalog.+) 1;
            perform pg_catalog.pg_sleep(rag._pause(v_waits, _move.tries));
        end if;
    end loop;
end
$$;

comment on procedure rag._move (int, int, interval) is
    'Take a tenant''s move to its end, step by step.';

create or replace procedure rag.isolate_tenant(
    name text, tries int default 200, lock_timeout interval default '500 ms'
)
    language plpgsql
    security invoker
as $$
declare
    v_tenant int;
begin
    call rag._begin_as_autocommit();
    v_tenant := rag._begin_move(isolate_tenant.name);
    commit;
    if v_tenant is not null then
        call rag._move(v_tenant, isolate_tenant.tries, isolate_tenant.lock_timeout);
    end if;
end
$$;

comment on procedure rag.isolate_tenant (text, int, interval) is
    'Move a tenant to a partition of his own with an HNSW index, while he is searched and written '
    'to. Broken off, it goes on where it was when called again; rag.cancel_move gives it up. For '
    'the switch writers and direct SQL wait lock_timeout at most, for each of so many tries. '
    'maintenance_work_mem of the session is what the index is built in.';

create or replace procedure rag.rebuild_tenant(
    name text, tries int default 200, lock_timeout interval default '500 ms'
)
    language plpgsql
    security invoker
as $$
declare
    v_tenant int;
begin
    call rag._begin_as_autocommit();
    v_tenant := rag._begin_move(rebuild_tenant.name, true);
    commit;
    if v_tenant is not null then
        call rag._move(v_tenant, rebuild_tenant.tries, rebuild_tenant.lock_timeout);
    end if;
end
$$;

comment on procedure rag.rebuild_tenant (text, int, interval) is
    'Make the partition of a tenant who has one of his own anew, beside the old one, as '
    'rag.isolate_tenant does: no dead rows, no bloat of its indexes. A no-op in a shared one.';

create or replace function rag._drop_copies(partition_id int)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_table text;
begin
    for v_table in
        select c.oid::regclass::text
        from pg_class as c
        where
            c.relnamespace = 'rag_data'::regnamespace
            and c.relkind = 'r'
            and c.relname ~ format(
                '^(copied_)?(chunks|lexemes|embeddings_m\d+)_p%s$', _drop_copies.partition_id
            )
        order by c.relname
    loop
        execute format('drop table %s', v_table);
    end loop;
end
$$;

comment on function rag._drop_copies(int) is
    'Drop the tables of a partition, and what remembers what was copied to them.';

create or replace function rag.cancel_move(name text)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_tenant int := rag._tenant_id(cancel_move.name);
    v_partition int;
begin
    delete from rag.moves as m
    where m.tenant_id = v_tenant
    returning m.partition_id into v_partition;
    if v_partition is null then
        return false;
    end if;
    perform rag._drop_copies(v_partition);
    return true;
end
$$;

comment on function rag.cancel_move(text) is
    'Give up a tenant''s move that is not done, and drop its copies; false if there is none.';

create or replace function rag._pool(name text)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
    v_tenant int := rag._tenant_id(_pool.name);
    v_old int;
    v_new int;
    v_table record;
begin
    perform rag._require_fresh_snapshots('a move');
    perform rag._share_models();
    select t.partition_id into v_old
    from rag.tenants as t
    join rag.partitions as p on p.partition_id = t.partition_id and p.kind = 'dedicated'
    where t.tenant_id = v_tenant
    for update of t;
    if v_old is null then
        return;
    end if;
    select p.partition_id into v_new
    from rag.partitions as p
    where p.kind = 'shared'
    order by (select count(*) from rag.tenants as t where t.partition_id = p.partition_id),
        p.partition_id
    limit 1;
    perform rag._create_embedding_child(m.model_id, v_new)
    from rag.models as m
    where m.dropped_at is null;
    for v_table in select m.* from rag._move_tables(v_tenant, v_new) as m loop
        continue when v_table.source is null;
        execute format(
            'insert into rag_data.%1$I (partition_id, %2$s) '
            'select $1, %2$s from %3$s as s where s.tenant_id = $2 order by s.chunk_id',
            v_table.child, rag._copied_columns(v_table.template), v_table.source
        )
        using v_new, v_tenant;
        execute format('delete from %s as s where s.tenant_id = $1', v_table.source)
        using v_tenant;
    end loop;
    update rag.tenants as t
    set partition_id = v_new, hnsw_models = '{}'
    where t.tenant_id = v_tenant;
end
$$;

comment on function rag._pool(text) is
    'Put a tenant''s rows back into a shared partition; a no-op if he is in one.';

create or replace function rag.drop_empty_partitions(empty_for interval default '1 minute')
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
    -- Dropping locks the parents against all searches, which queue up behind whoever waits.
    set lock_timeout = '100ms'
as $$
#variable_conflict use_column
declare
    v_partition int;
begin
    -- A search that began before its tenant left looks for the tables by name, and a transaction
    -- with one snapshot for all its searches may begin one any time.
    update rag.partitions as p
    set
        empty_since = clock_timestamp(),
        readers = array(
            select l.virtualxid
            from pg_locks as l
            join pg_stat_activity as a on a.pid = l.pid
            where
                l.locktype = 'virtualxid'
                and l.mode = 'ExclusiveLock'
                and l.pid <> pg_backend_pid()
                and a.datname = current_database()
                -- Autovacuum is nobody and searches nothing.
                and a.usesysid is not null
        )
    where
        p.kind = 'dedicated'
        and p.empty_since is null
        and not exists (select from rag.tenants as t where t.partition_id = p.partition_id);
    for v_partition in
        select p.partition_id
        from rag.partitions as p
        where
            p.kind = 'dedicated'
            and p.empty_since <= clock_timestamp() - drop_empty_partitions.empty_for
            and not exists (select from rag.tenants as t where t.partition_id = p.partition_id)
            and not exists (
                select
                from pg_locks as l
                where
                    l.locktype = 'virtualxid'
                    and l.mode = 'ExclusiveLock'
                    and l.virtualxid = any(p.readers)
            )
        for update
    loop
        perform rag._drop_copies(v_partition);
        delete from rag.partitions as p where p.partition_id = v_partition;
    end loop;
    return true;
exception
    when lock_not_available or deadlock_detected then
        return false;
end
$$;

comment on function rag.drop_empty_partitions(interval) is
    'Drop the partitions of their own that tenants have left, or that dropped tenants had, so long '
    'ago or longer; false if somebody uses one just now. Those that a transaction may still read, '
    'which was open when its tenant left, stay until that has ended.';

create or replace procedure rag.pool_tenant(name text)
    language plpgsql
    security invoker
as $$
begin
    call rag._begin_as_autocommit();
    perform rag.cancel_move(pool_tenant.name);
    perform rag._pool(pool_tenant.name);
    commit;
    -- Not those that he has just left, which searches may still be reading.
    perform rag.drop_empty_partitions();
    commit;
end
$$;

comment on procedure rag.pool_tenant (text) is
    'Move a tenant from a partition of his own back to a shared one. His writers wait meanwhile, '
    'his searches do not. The tables that he leaves go by rag.drop_empty_partitions().';
