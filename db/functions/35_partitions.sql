-- Partitions: the tables below rag.chunks, rag.lexemes and rag.embeddings, and their rights.

create or replace function rag._secure_table(name regclass, tenant_column name)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    -- Asked first: altering a table that is as it should be would lock it against searches.
    if exists (
        select
        from pg_class as c
        join pg_policy as p on p.polrelid = c.oid
        where c.oid = _secure_table.name and c.relrowsecurity
    ) then
        return;
    end if;
    execute format('revoke all on table %s from public', _secure_table.name);
    execute format('alter table %s enable row level security', _secure_table.name);
    -- Restrictive, because permissive policies are or-ed: one careless "using (true)" more would
    -- open the table. The sub-select is evaluated once a statement, not once a row.
    execute format(
        'create policy tenant_only on %s as restrictive using (%I = (select rag._policy_tenant()))',
        _secure_table.name, _secure_table.tenant_column
    );
    execute format('create policy app_reads on %s for select to rag_app using (true)',
        _secure_table.name);
end
$$;

comment on function rag._secure_table(regclass, name) is
    'Row-level security for a table with a tenant in that column; again is a no-op.';

create or replace function rag._secure_place(name regclass)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    if exists (
        select
        from pg_policy as p
        where p.polrelid = _secure_place.name and p.polname = 'in_its_place'
    ) then
        return;
    end if;
    execute format(
        'create policy in_its_place on %s as restrictive '
        'using (partition_id = (select rag._policy_partition()))',
        _secure_place.name
    );
end
$$;

comment on function rag._secure_place(regclass) is
    'Direct SQL on a partitioned table sees one partition, that of the tenant; again is a no-op.';

-- RLS is not forced on the owner: under a policy no GIN index can be used (@@ is not leakproof),
-- so rag.search finds its candidates with the owner's rights and an explicit tenant, and only
-- then reads their text with the caller's rights, where the policies hold.
create or replace function rag._create_table(child text, template regclass, indexes boolean)
    returns regclass
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_child text := format('rag_data.%I', _create_table.child);
begin
    execute format('create table %s (like %s including all%s)', v_child, _create_table.template,
        case when _create_table.indexes then '' else ' excluding indexes' end);
    -- Searches name it, with the owner's rights, also if a superuser has made it.
    execute format('alter table %s owner to rag_owner', v_child);
    perform rag._secure_table(v_child::regclass, 'tenant_id');
    -- Rows stay in one piece up to a whole page of 8 kB instead of 2: a vector out of line costs
    -- a second look-up, and an exact scan took 44 ms instead of 4.5.
    execute format('alter table %s set (toast_tuple_target = 8160)', v_child);
    return v_child::regclass;
end
$$;

comment on function rag._create_table(text, regclass, boolean) is
    'A table of rag_data in the form of another, secured, that can become a partition.';

create or replace function rag._create_child(
    child text, parent regclass, key int, by_place boolean, template regclass
)
    returns regclass
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    -- Made apart and attached: "partition of" would lock the parent against every search.
    v_child regclass := rag._create_table(_create_child.child, _create_child.template, true);
begin
    execute format('alter table %s add constraint is_of_key check (%I = %s)', v_child,
        case when _create_child.by_place then 'partition_id' else 'model_id' end,
        _create_child.key);
    execute format('alter table %s attach partition %s for values in (%s)',
        _create_child.parent, v_child, _create_child.key);
    execute format('alter table %s drop constraint is_of_key', v_child);
    return v_child;
end
$$;

comment on function rag._create_child(text, regclass, int, boolean, regclass) is
    'Create, secure and attach a partition in schema rag_data.';

create or replace function rag._check_dimensions(child regclass, model_id int)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    execute format(
        'alter table %s add constraint embedding_is_of_model check (vector_dims(embedding) = %s)',
        _check_dimensions.child,
        (select m.dimensions from rag.models as m where m.model_id = _check_dimensions.model_id)
    );
end
$$;

comment on function rag._check_dimensions(regclass, int) is
    'A table of embeddings takes vectors of its model''s size only.';

create or replace function rag._create_hnsw(child regclass, model_id int)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    -- The size is in the expression: a column of its own type could not be in a partition.
    execute format(
        'create index on %s using hnsw ((embedding::halfvec(%s)) halfvec_cosine_ops) '
        'with (m = 24, ef_construction = 128)',
        _create_hnsw.child,
        (select m.dimensions from rag.models as m where m.model_id = _create_hnsw.model_id)
    );
    -- Vacuum mends the graph around each vector that is gone: 219 s for 3,000 of 10,000, where a
    -- new index takes 32. At the default, a fifth, autovacuum came before rag.maintain, whose
    -- bloat of 0.3 is 0.43 dead rows for each live one. Replaced texts are inserts as well.
    execute format(
        'alter table %s set (autovacuum_vacuum_scale_factor = 0.5, '
        'autovacuum_vacuum_insert_scale_factor = 0.5)',
        _create_hnsw.child
    );
end
$$;

comment on function rag._create_hnsw(regclass, int) is
    'The HNSW index of one model''s embeddings in one partition, which autovacuum then leaves to '
    'maintenance until half of the rows are dead.';

create or replace function rag._create_facet_index(child regclass)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    -- Not on the parent: in a shared partition every vector of a tenant is compared anyway. 2.5 MB
    -- for 100,000 chunks. fastupdate off: as of rag.lexemes.
    execute format(
        'create index on %s using gin (facets) with (fastupdate = off)', _create_facet_index.child
    );
end
$$;

comment on function rag._create_facet_index(regclass) is
    'The index by which few embeddings under a filter are found, in a partition that has HNSW.';

create or replace function rag._create_embedding_child(model_id int, partition_id int)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_parent text := format('embeddings_m%s', _create_embedding_child.model_id);
    v_name text := format('%s_p%s', v_parent, _create_embedding_child.partition_id);
    v_child regclass;
begin
    if to_regclass(format('rag_data.%I', v_name)) is not null then
        return;
    end if;
    -- Whoever comes to need it first makes it, and others wait.
    execute format('lock table rag_data.%I in share update exclusive mode', v_parent);
    if to_regclass(format('rag_data.%I', v_name)) is not null then
        return;
    end if;
    v_child := rag._create_child(
        v_name, format('rag_data.%I', v_parent)::regclass,
        _create_embedding_child.partition_id, true, 'rag.embeddings'::regclass
    );
    perform rag._check_dimensions(v_child, _create_embedding_child.model_id);
    -- While it is empty, for a model that comes when the tenant has a partition of his own: adding
    -- a vector to the index takes a millisecond or two, embedding its text ten times that.
    if exists (
        select
        from rag.partitions as p
        where p.partition_id = _create_embedding_child.partition_id and p.kind = 'dedicated'
    ) then
        perform rag._create_hnsw(v_child, _create_embedding_child.model_id);
        perform rag._create_facet_index(v_child);
        update rag.tenants as t
        set hnsw_models = t.hnsw_models || _create_embedding_child.model_id
        where t.partition_id = _create_embedding_child.partition_id;
    end if;
end
$$;

comment on function rag._create_embedding_child(int, int) is
    'See to it that there is a table of one model''s embeddings in one partition.';

create or replace function rag._create_partition(kind text)
    returns int
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_partition int;
    v_model int;
begin
    perform rag._share_models();
    insert into rag.partitions (kind) values (_create_partition.kind)
    returning partition_id into v_partition;
    perform rag._create_child(format('chunks_p%s', v_partition), 'rag.chunks', v_partition, true,
        'rag.chunks');
    perform rag._create_child(format('lexemes_p%s', v_partition), 'rag.lexemes', v_partition, true,
        'rag.lexemes');
    for v_model in
        select m.model_id from rag.models as m where m.dropped_at is null order by m.model_id
    loop
        perform rag._create_embedding_child(v_model, v_partition);
    end loop;
    return v_partition;
end
$$;

comment on function rag._create_partition(text) is
    'A new partition of chunks, lexemes and every model''s embeddings; returns its id.';

create or replace function rag._shared_partitions()
    returns int
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_wanted text := nullif(current_setting('rag.shared_partitions', true), '');
    v_there int := (select count(*) from rag.partitions as p where p.kind = 'shared');
    v_partitions int;
begin
    -- A power of two: a partition can be split in halves later.
    if v_wanted is not null and v_wanted not in (
        '1', '2', '4', '8', '16', '32', '64', '128', '256', '512', '1024'
    ) then
        raise exception 'invalid number of shared partitions' using
            errcode = 'invalid_parameter_value',
            detail = format('It is %L.', v_wanted),
            hint = 'Choose a power of two from 1 to 1024; 16 unless said otherwise.';
    end if;
    v_partitions := coalesce(v_wanted::int, nullif(v_there, 0), 16);
    if v_there not in (0, v_partitions) then
        raise exception 'the number of shared partitions is chosen at installation' using
            errcode = 'object_not_in_prerequisite_state',
            detail = format('This database has %s, not %s.', v_there, v_partitions),
            hint = 'Leave it out. For another number install a new database and move the tenants '
            'there: rag.export_tenant.';
    end if;
    return v_partitions;
end
$$;

comment on function rag._shared_partitions() is
    'How many shared partitions there are, or will be: what the migration was told, else 16.';

create or replace function rag._create_model(
    name text,
    dimensions int,
    provider text,
    revision text default null,
    query_prefix text default '',
    document_prefix text default '',
    is_active boolean default false
)
    returns int
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_model int;
begin
    insert into rag.models (
        name, dimensions, provider, revision, query_prefix, document_prefix, is_active,
        activated_at
    )
    values (
        _create_model.name, _create_model.dimensions, _create_model.provider,
        _create_model.revision, _create_model.query_prefix, _create_model.document_prefix,
        _create_model.is_active, case when _create_model.is_active then clock_timestamp() end
    )
    returning model_id into v_model;
    execute format(
        'create table rag_data.embeddings_m%s (like rag.embeddings including all) '
        'partition by list (partition_id)', v_model
    );
    perform rag._secure_table(format('rag_data.embeddings_m%s', v_model)::regclass, 'tenant_id');
    execute format(
        'alter table rag.embeddings attach partition rag_data.embeddings_m%s for values in (%s)',
        v_model, v_model
    );
    -- As many as one transaction can lock; the others when their first embedding comes
    -- (rag.complete_jobs).
    perform rag._create_embedding_child(v_model, p.partition_id)
    from (
        select o.partition_id
        from rag.partitions as o
        order by o.partition_id
        limit rag._most_tables()
    ) as p;
    return v_model;
end
$$;

comment on function rag._create_model(text, int, text, text, text, text, boolean) is
    'A new embedding model with its tables; returns its id.';
