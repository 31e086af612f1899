-- Bulk: from a table that the caller has filled, by COPY for instance.

create or replace function rag.import_batch(
    source regclass,
    collection text default 'default',
    batch int default 500,
    out imported int,
    out failed int
)
    returns record
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_missing text;
    v_places tid[];
    v_documents jsonb[];
    v_done tid[] := '{}';
    v_is_done boolean;
    v_error text;
    v_detail text;
begin
    if import_batch.batch is null or import_batch.batch not between 1 and 10000 then
        raise exception 'invalid batch' using
            errcode = 'invalid_parameter_value',
            detail = format('batch is %s.', coalesce(import_batch.batch::text, 'null')),
            hint = 'A batch has 1 to 10,000 documents.';
    end if;
    select string_agg(x.name, ', ') into v_missing
    from unnest(array['content', 'uri', 'title', 'metadata', 'error']) as x (name)
    where not exists (
        select
        from pg_attribute as a
        where
            a.attrelid = import_batch.source
            and a.attname = x.name
            and a.attnum > 0
            and not a.attisdropped
    );
    if v_missing is not null then
        raise exception 'the table lacks columns' using
            errcode = 'invalid_parameter_value',
            detail = format('%s has no %s.', import_batch.source, v_missing),
            hint = 'create temporary table incoming (content text, uri text, title text, metadata '
            'jsonb, error text);';
    end if;
    if (select c.relkind from pg_class as c where c.oid = import_batch.source) <> 'r' then
        raise exception 'the source is no plain table' using
            errcode = 'invalid_parameter_value',
            detail = format('%s is something else.', import_batch.source),
            hint = 'Rows are told by their place, which views and partitioned tables do not have.';
    end if;
    imported := 0;
    failed := 0;
    -- Only: a place is one of the table itself, and tables that inherit from it have the same ones.
    execute format(
        'select array_agg(b.ctid), array_agg(jsonb_build_object(''content'', b.content::text, '
        '''uri'', b.uri::text, ''title'', b.title::text, ''metadata'', b.metadata)) '
        'from (select s.ctid, s.content, s.uri, s.title, s.metadata from only %s as s '
        'where s.error is null limit $1 for update skip locked) as b',
        import_batch.source
    )
    into v_places, v_documents
    using import_batch.batch;
    if v_places is null then
        return;
    end if;
    -- All at once; and if one of them cannot be put, each by itself, in their order.
    v_is_done := false;
    begin
        perform from rag.put_many(to_jsonb(v_documents), import_batch.collection);
        v_is_done := true;
    exception
        when data_exception or integrity_constraint_violation or program_limit_exceeded
            or sqlstate 'RG004' then
            v_is_done := false;
    end;
    if v_is_done then
        v_done := v_places;
    else
        for i in 1 .. cardinality(v_places) loop
            begin
                perform from rag.put_many(
                    jsonb_build_array(v_documents[i]), import_batch.collection
                );
                v_done := v_done || v_places[i];
            exception
                when data_exception or integrity_constraint_violation or program_limit_exceeded
                    or sqlstate 'RG004' then
                    get stacked diagnostics
                        v_error = message_text, v_detail = pg_exception_detail;
                    execute format(
                        'update only %s as s set error = $2 where s.ctid = $1', import_batch.source
                    )
                    using v_places[i], concat_ws(': ', v_error, nullif(v_detail, ''));
                    failed := failed + 1;
            end;
        end loop;
    end if;
    execute format('delete from only %s as s where s.ctid = any($1)', import_batch.source)
    using v_done;
    imported := cardinality(v_done);
end
$$;

comment on function rag.import_batch(regclass, text, int) is
    'Put the next documents of a table with the columns content, uri, title, metadata and error: '
    'those that are put leave the table, those that cannot be stay in it with their error. Both '
    'numbers are 0 when only such are left. Tables that inherit from it are left alone.';

create or replace procedure rag.import(
    source regclass,
    collection text default 'default',
    batch int default 500,
    inout imported bigint default 0,
    inout failed bigint default 0
)
    language plpgsql
    security invoker
as $$
declare
    v_batch record;
begin
    imported := 0;
    failed := 0;
    loop
        select b.imported, b.failed into v_batch
        from rag.import_batch(import.source, import.collection, import.batch) as b;
        exit when v_batch.imported operator(pg_catalog.=) 0
            and v_batch.failed operator(pg_catalog.=) 0;
        imported := imported operator(pg_catalog.+) v_batch.imported;
        failed := failed operator(pg_catalog.+) v_batch.failed;
        commit;
    end loop;
end
$$;

comment on procedure rag.import (regclass, text, int, bigint, bigint) is
    'rag.import_batch until nothing is left, with a commit after each batch: broken off, it goes '
    'on where it was when called again.';
