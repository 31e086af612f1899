-- What a model costs: bytes that are there, and what it would take to embed all with it.

create or replace function rag._model_bytes(model_id int)
    returns bigint
    language sql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select coalesce(sum(pg_total_relation_size(i.inhrelid)), 0)::bigint
    from pg_inherits as i
    where i.inhparent = to_regclass(format('rag_data.embeddings_m%s', _model_bytes.model_id))
$$;

comment on function rag._model_bytes(int) is 'What the embeddings of a model take on disk.';

create or replace function rag.estimate_model(name text, dimensions int default null)
    returns table (
        chunks bigint,
        chunks_left bigint,
        bytes bigint,
        bytes_left bigint,
        chunks_per_second real,
        measured_of text,
        time_left interval
    )
    language plpgsql
    stable
    parallel restricted
    security definer
    set search_path = pg_catalog, public, pg_temp
    set jit = off
as $$
#variable_conflict use_column
declare
    v_model rag.models;
    v_dimensions int;
begin
    select m.* into v_model
    from rag.models as m
    where m.name = estimate_model.name and m.dropped_at is null;
    v_dimensions := coalesce(v_model.dimensions, estimate_model.dimensions);
    if v_dimensions is null then
        -- The error for an unknown one; who only thinks of adding it gives its dimensions.
        v_model := rag._model(estimate_model.name);
    end if;
    chunks := (
        select coalesce(sum((rag._lexical_totals(t.tenant_id)).chunks), 0) from rag.tenants as t
    );
    chunks_left := chunks - (
        select coalesce(sum(l.embedded), 0) from rag.list_models() as l
        where l.name = estimate_model.name
    );
    bytes := rag._model_bytes(v_model.model_id);
    -- A row: 2 bytes a dimension, 40 of header and keys, and as much again in its index as keys.
    bytes_left := chunks_left * (2 * v_dimensions + 92);
    -- Nine of ten slots of ten seconds, so that neither idle time nor one lucky batch counts.
    select s.name, s.rate into measured_of, chunks_per_second
    from (
        select m.name, percentile_disc(0.9) within group (order by r.rate)::real as rate
        from (
            select c.model_id, sum(c.chunks) / 10.0 as rate
            from rag.completions as c
            group by c.model_id, floor(extract(epoch from c.completed_at) / 10)
        ) as r
        join rag.models as m on m.model_id = r.model_id
        group by m.model_id
        order by m.model_id is distinct from v_model.model_id, not m.is_active
        limit 1
    ) as s;
    time_left := case
        when chunks_left = 0 then interval '0'
        else make_interval(secs => round(chunks_left / nullif(chunks_per_second, 0)))
    end;
    return next;
end
$$;

comment on function rag.estimate_model(text, int) is
    'What a model costs, or would cost (then give its dimensions): chunks and bytes in all and '
    'left, and the time at the rate measured in the last hour, of this model or of another one.';
