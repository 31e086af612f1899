-- Evaluation: judged questions, nDCG, recall and MRR, runs that are kept and compared.

create or replace function rag._eval_set(tenant_id int, name text)
    returns rag.eval_sets
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_set rag.eval_sets;
begin
    select s.* into v_set
    from rag.eval_sets as s
    where s.tenant_id = _eval_set.tenant_id and s.name = _eval_set.name;
    if not found then
        raise exception 'evaluation set "%" does not exist', _eval_set.name using
            errcode = 'no_data_found',
            detail = format('Tenant %L has no evaluation set of that name.', rag.current_tenant()),
            hint = 'Create it: select rag.add_judgements(name, judgements).';
    end if;
    return v_set;
end
$$;

comment on function rag._eval_set(int, text) is 'The tenant''s evaluation set, or an error.';

create or replace function rag.add_judgements(
    eval_set text, judgements jsonb, collection text default 'default'
)
    returns bigint
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_tenant int := (select c.tenant_id from rag._context() as c);
    v_collection int := (rag._collection(v_tenant, add_judgements.collection)).collection_id;
    v_set int;
    v_bad jsonb;
    v_rows bigint;
begin
    if jsonb_typeof(add_judgements.judgements) is distinct from 'array' then
        raise exception 'judgements is not an array' using
            errcode = 'invalid_parameter_value',
            detail = format('It is of type %s.',
                coalesce(jsonb_typeof(add_judgements.judgements), 'null')),
            hint = 'Give an array such as [{"query": "…", "uri": "…", "grade": 1}].';
    end if;
    select e.item into v_bad
    from jsonb_array_elements(add_judgements.judgements) as e (item)
    where
        jsonb_typeof(e.item) <> 'object'
        or coalesce(e.item ->> 'query', '') = ''
        or coalesce(e.item ->> 'uri', '') = ''
        or jsonb_typeof(coalesce(e.item -> 'grade', '1')) <> 'number'
        or (e.item ->> 'grade')::numeric not between 0 and 100
    limit 1;
    if found then
        raise exception 'a judgement is not complete' using
            errcode = 'invalid_parameter_value',
            detail = format('It is %s.', left(v_bad::text, 200)),
            hint = 'A judgement has query and uri; grade (0 to 100, 1 if left out), query_id and '
            'embedding may be added.';
    end if;
    insert into rag.eval_sets as s (tenant_id, collection_id, name)
    values (v_tenant, v_collection, add_judgements.eval_set)
    on conflict on constraint eval_sets_name_is_unique
    do update set collection_id = excluded.collection_id
    returning s.eval_set_id into v_set;

    insert into rag.eval_queries as q (tenant_id, eval_set_id, query_id, query, embedding)
    select distinct on (coalesce(j.query_id, j.query))
        v_tenant, v_set, coalesce(j.query_id, j.query), j.query, (j.embedding::text)::vector
    from jsonb_to_recordset(add_judgements.judgements)
        as j (query_id text, query text, embedding jsonb)
    order by coalesce(j.query_id, j.query), j.embedding is null
    on conflict (tenant_id, eval_set_id, query_id)
    do update set query = excluded.query, embedding = coalesce(excluded.embedding, q.embedding);

    insert into rag.judgements (tenant_id, eval_set_id, query_id, uri, grade)
    select v_tenant, v_set, coalesce(j.query_id, j.query), j.uri, max(coalesce(j.grade, 1))
    from jsonb_to_recordset(add_judgements.judgements)
        as j (query_id text, query text, uri text, grade real)
    group by coalesce(j.query_id, j.query), j.uri
    on conflict (tenant_id, eval_set_id, query_id, uri) do update set grade = excluded.grade;
    get diagnostics v_rows = row_count;
    return v_rows;
end
$$;

comment on function rag.add_judgements(text, jsonb, text) is
    'Add judged questions {query, uri, grade, query_id, embedding} to an evaluation set, which is '
    'made if it is not there; the same again replaces the grade. Returns how many.';

create or replace function rag.drop_eval_set(name text)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    delete from rag.eval_sets as s
    where
        s.tenant_id = (select c.tenant_id from rag._context() as c)
        and s.name = drop_eval_set.name;
    return found;
end
$$;

comment on function rag.drop_eval_set(text) is
    'Drop an evaluation set with its questions, judgements and runs; false if there is none.';

create or replace function rag._measures(
    uris text[], relevant text[], grades real[], k int,
    out ndcg double precision, out recall double precision, out mrr double precision
)
    returns record
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    -- nDCG with the gain 2^grade - 1 and the discount log2(place + 1) (Burges et al. 2005).
    with
    judged as (
        select j.uri, power(2, j.grade) - 1 as gain
        from unnest(relevant, grades) as j (uri, grade)
    ),
    found as (
        -- A document counts where its first passage stands.
        select f.uri, row_number() over (order by min(f.place)) as place
        from unnest(uris) with ordinality as f (uri, place)
        group by f.uri
    ),
    hits as (
        select f.place, j.gain
        from found as f
        join judged as j using (uri)
        where f.place <= _measures.k and j.gain > 0
    ),
    ideal as (
        select j.gain, row_number() over (order by j.gain desc) as place
        from judged as j
        where j.gain > 0
    )
    select
        coalesce((select sum(h.gain / log(2, h.place + 1)) from hits as h), 0)
        / (
            select sum(i.gain / log(2, i.place + 1))
            from ideal as i
            where i.place <= _measures.k
        ),
        (select count(*) from hits)::double precision / (select count(*) from ideal),
        coalesce(1.0 / (select min(h.place) from hits as h), 0)
$$;

comment on function rag._measures(text[], text[], real[], int) is
    'nDCG@k, recall@k and reciprocal rank of what was found, best first, against the judgements.';

create or replace function rag.evaluate(
    eval_set text,
    k int default 10,
    mode text default 'hybrid',
    lexical_weight real default null,
    fusion text default null,
    use_embeddings boolean default true,
    label text default null
)
    returns table (
        run_id int,
        queries int,
        ndcg double precision,
        recall double precision,
        mrr double precision,
        milliseconds double precision
    )
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_tenant int := (select c.tenant_id from rag._context() as c);
    v_set rag.eval_sets := rag._eval_set(v_tenant, evaluate.eval_set);
    v_collection text := (
        select c.name
        from rag.collections as c
        where c.tenant_id = v_tenant and c.collection_id = v_set.collection_id
    );
    v_run int := nextval('rag.eval_run_ids');
    v_query record;
    v_uris text[];
    v_times double precision[] := '{}';
    v_started timestamptz;
begin
    insert into rag.eval_runs (
        tenant_id, run_id, eval_set_id, label, settings, queries, ndcg, recall, mrr, milliseconds
    )
    values (
        v_tenant, v_run, v_set.eval_set_id,
        coalesce(
            evaluate.label,
            concat_ws(' ', evaluate.mode, evaluate.fusion, evaluate.lexical_weight)
        ),
        jsonb_build_object(
            'k', evaluate.k, 'mode', evaluate.mode, 'lexical_weight', evaluate.lexical_weight,
            'fusion', evaluate.fusion, 'use_embeddings', evaluate.use_embeddings
        ),
        0, 0, 0, 0, 0
    );
    for v_query in
        select
            q.query_id,
            q.query,
            case when evaluate.use_embeddings then q.embedding end as embedding,
            j.uris,
            j.grades
        from rag.eval_queries as q
        join (
            -- A question that nothing answers has no best order.
            select
                g.query_id,
                array_agg(g.uri order by g.uri) as uris,
                array_agg(g.grade order by g.uri) as grades
            from rag.judgements as g
            where g.tenant_id = v_tenant and g.eval_set_id = v_set.eval_set_id
            group by g.query_id
            having max(g.grade) > 0
        ) as j on j.query_id = q.query_id
        where q.tenant_id = v_tenant and q.eval_set_id = v_set.eval_set_id
        order by q.query_id
    loop
        v_started := clock_timestamp();
        -- Passages in plenty: k documents may need many of them.
        select array_agg(s.uri order by s.rank) into v_uris
        from rag.search(
            v_query.query, least(1000, 5 * evaluate.k), v_collection,
            embedding => v_query.embedding, mode => evaluate.mode,
            lexical_weight => evaluate.lexical_weight, fusion => evaluate.fusion
        ) as s;
        v_times := v_times || 1000 * extract(epoch from clock_timestamp() - v_started);
        insert into rag.eval_results (tenant_id, run_id, query_id, ndcg, recall, mrr, uris)
        select v_tenant, v_run, v_query.query_id, m.ndcg, m.recall, m.mrr, coalesce(v_uris, '{}')
        from rag._measures(v_uris, v_query.uris, v_query.grades, evaluate.k) as m;
    end loop;
    if v_times = '{}' then
        raise exception 'the evaluation set has no judged question' using
            errcode = 'no_data_found',
            detail = format('Set %L has no judgement above grade 0.', evaluate.eval_set),
            hint = 'Add some: select rag.add_judgements(name, judgements).';
    end if;
    return query
    update rag.eval_runs as r
    set
        queries = s.queries,
        ndcg = s.ndcg,
        recall = s.recall,
        mrr = s.mrr,
        milliseconds = (
            select percentile_cont(0.5) within group (order by t) from unnest(v_times) as t
        )
    from (
        select count(*) as queries, avg(e.ndcg) as ndcg, avg(e.recall) as recall, avg(e.mrr) as mrr
        from rag.eval_results as e
        where e.tenant_id = v_tenant and e.run_id = v_run
    ) as s
    where r.tenant_id = v_tenant and r.run_id = v_run
    returning r.run_id, r.queries, r.ndcg, r.recall, r.mrr, r.milliseconds;
end
$$;

comment on function rag.evaluate(text, int, text, real, text, boolean, text) is
    'Search every judged question of a set and keep the run: mean nDCG@k, recall@k, MRR over '
    'documents, and the median time of a search.';

create or replace function rag._check_runs(tenant_id int, before int, after int)
    returns void
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_run int;
    v_sets text[];
begin
    foreach v_run in array array[_check_runs.before, _check_runs.after] loop
        v_sets := v_sets || (
            select s.name
            from rag.eval_runs as r
            join rag.eval_sets as s
                on s.tenant_id = r.tenant_id and s.eval_set_id = r.eval_set_id
            where r.tenant_id = _check_runs.tenant_id and r.run_id = v_run
        );
        if v_sets[cardinality(v_sets)] is null then
            raise exception 'run % does not exist', coalesce(v_run::text, 'null') using
                errcode = 'no_data_found',
                detail = format('Tenant %L has no run of that number.', rag.current_tenant()),
                hint = 'rag.evaluate returns it; select run_id, label from rag.eval_runs.';
        end if;
    end loop;
    if v_sets[1] <> v_sets[2] then
        raise exception 'runs % and % are of different sets',
            _check_runs.before, _check_runs.after using
            errcode = 'invalid_parameter_value',
            detail = format('One is of %L, the other of %L.', v_sets[1], v_sets[2]),
            hint = 'Only what was asked the same questions can be compared.';
    end if;
end
$$;

comment on function rag._check_runs(int, int, int) is
    'That two runs are the tenant''s and of one evaluation set, or the error.';

create or replace function rag.compare_runs(before int, after int)
    returns table (
        query_id text,
        query text,
        ndcg_before double precision,
        ndcg_after double precision,
        difference double precision
    )
    language plpgsql
    stable
    parallel restricted
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_tenant int := (select c.tenant_id from rag._context() as c);
begin
    perform rag._check_runs(v_tenant, compare_runs.before, compare_runs.after);
    return query
    select q.query_id, q.query, b.ndcg, a.ndcg, a.ndcg - b.ndcg
    from rag.eval_results as b
    join rag.eval_results as a
        on a.tenant_id = v_tenant and a.run_id = compare_runs.after and a.query_id = b.query_id
    join rag.eval_runs as r on r.tenant_id = v_tenant and r.run_id = b.run_id
    join rag.eval_runs as n
        on n.tenant_id = v_tenant and n.run_id = a.run_id and n.eval_set_id = r.eval_set_id
    join rag.eval_queries as q
        on q.tenant_id = v_tenant
        and q.eval_set_id = r.eval_set_id
        and q.query_id = b.query_id
    where b.tenant_id = v_tenant and b.run_id = compare_runs.before
    order by a.ndcg - b.ndcg, q.query_id;
end
$$;

comment on function rag.compare_runs(int, int) is
    'Two runs of one set, question by question, what lost most first.';

create or replace function rag._chance(differences double precision[], seeds bigint[])
    returns double precision
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    -- Fisher's randomization test (for rankings: Smucker, Allan and Carterette 2007). Were the two
    -- alike, each difference could as well have had the other sign. Every choice of signs is tried
    -- where there are few, else 4,096 that are drawn from the seeds: the same runs, the same p.
    with
    given as (
        select g.difference, g.seed, g.place::int - 1 as place
        from unnest(differences, seeds) with ordinality as g (difference, seed, place)
    ),
    seen as (
        select coalesce(abs(sum(g.difference)), 0) as total, least(count(*), 12)::int as bits
        from given as g
    ),
    rounds as (
        select abs(sum(
            case
                when cardinality(differences) > 12 and hashint8extended(g.seed, r.round) & 1 = 1
                    or cardinality(differences) <= 12 and (r.round >> g.place) & 1 = 1
                    then -g.difference
                else g.difference
            end
        )) as total
        from seen as s
        cross join generate_series(0, (1 << s.bits) - 1) as r (round)
        cross join given as g
        group by r.round
    )
    select coalesce(avg(case when r.total >= s.total - 1e-9 then 1.0 else 0.0 end), 1)
    from rounds as r
    cross join seen as s
$$;

comment on function rag._chance(double precision[], bigint[]) is
    'How often differences at least as large on average come about when signs are drawn by lot, 0 '
    'to 1: the two-sided p of a paired randomization test.';

create or replace function rag.compare_means(before int, after int)
    returns table (
        label_before text,
        label_after text,
        queries int,
        ndcg_before double precision,
        ndcg_after double precision,
        difference double precision,
        better int,
        worse int,
        p double precision
    )
    language plpgsql
    stable
    parallel restricted
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_tenant int := (select c.tenant_id from rag._context() as c);
    v_differences double precision[];
    v_hashes bigint[];
begin
    perform rag._check_runs(v_tenant, compare_means.before, compare_means.after);
    select
        array_agg(c.difference order by c.query_id),
        array_agg(hashtextextended(c.query_id, 0) order by c.query_id)
    into v_differences, v_hashes
    from rag.compare_runs(compare_means.before, compare_means.after) as c
    where c.difference <> 0;
    return query
    select
        b.label,
        a.label,
        m.queries,
        m.ndcg_before,
        m.ndcg_after,
        m.ndcg_after - m.ndcg_before,
        m.better,
        m.worse,
        rag._chance(v_differences, v_hashes)
    from rag.eval_runs as b
    join rag.eval_runs as a
        on a.tenant_id = v_tenant
        and a.run_id = compare_means.after
        and a.eval_set_id = b.eval_set_id
    cross join lateral (
        select
            count(*)::int as queries,
            avg(c.ndcg_before) as ndcg_before,
            avg(c.ndcg_after) as ndcg_after,
            count(*) filter (where c.difference > 0)::int as better,
            count(*) filter (where c.difference < 0)::int as worse
        from rag.compare_runs(compare_means.before, compare_means.after) as c
    ) as m
    where b.tenant_id = v_tenant and b.run_id = compare_means.before;
end
$$;

comment on function rag.compare_means(int, int) is
    'Two runs of one set in one row: mean nDCG@k over the questions that both have, how many of '
    'them got better and worse, and p, how often chance alone makes such a difference.';
