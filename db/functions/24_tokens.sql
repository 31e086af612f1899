-- Tokens, for the strategy of that name: what a text costs in a model's own, counted by the table
-- of word pieces that the embedder has learned vectors for (rag.word_vectors).

create or replace function rag._token_budget(
    model text, wanted int, out vocabulary int, out size int
)
    returns record
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_variable
declare
    v_model rag.models;
    v_tenant int := rag._policy_tenant();
begin
    if model is not null then
        v_model := rag._model(model);
    else
        v_model := rag._active_model(v_tenant);
    end if;
    select s.set_id into vocabulary
    from rag.word_vector_sets as s
    where s.model_id = v_model.model_id and s.is_current;
    -- Two mark the beginning and the end of what the model reads, and a prefix comes before it.
    size := least(
        wanted,
        (v_model.settings ->> 'max_tokens')::int - 2
        - coalesce(rag._count_tokens(v_model.document_prefix, vocabulary), 0)
    );
    size := greatest(size, 20);
end
$$;

comment on function rag._token_budget(text, int) is
    'The vocabulary that a model''s tokens are counted by (null: none is there yet), and the '
    'wanted size, or less where the model reads no more at once.';

create or replace function rag._guessed_tokens(part text)
    returns int
    language sql
    immutable
    parallel safe
    security invoker
-- 8 to 71 % more than there are in texts of English, Spanish and code; never fewer in a chunk.
return case
    when octet_length(part) = length(part) then (length(part) + 2) / 3
    else length(part)
end;

comment on function rag._guessed_tokens(text) is
    'How many tokens a word has at most, as long as no vocabulary is there: one for three letters '
    'of ASCII, or for each letter of any other script.';

create or replace function rag._piece_count(vocabulary int, word text)
    returns int
    language plpgsql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_variable
declare
    v_length constant int := length(word);
    v_start int := 1;
    v_step int;
    v_count int := 0;
begin
    -- Greedy longest match, as WordPiece does it. A letter that no piece begins with counts one.
    while v_start <= v_length loop
        select max(length(w.word)) into v_step
        from rag.word_vectors as w
        where
            w.set_id = vocabulary
            and w.word = any(array(
                select
                    case when v_start > 1 then '##' else '' end || substr(word, v_start, n)
                from generate_series(1, least(20, v_length - v_start + 1)) as n
            ));
        v_step := coalesce(v_step - case when v_start > 1 then 2 else 0 end, 1);
        v_start := v_start + v_step;
        v_count := v_count + 1;
    end loop;
    return v_count;
end
$$;

comment on function rag._piece_count(int, text) is
    'How many pieces of the vocabulary a word is made of.';

create or replace function rag._token_units(
    content text, vocabulary int, out starts int[], out sums int[]
)
    returns record
    language plpgsql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    -- The planner knows neither how many words there are nor how many differ.
    set enable_nestloop = off
    set jit = off
as $$
#variable_conflict use_column
declare
    v_sign constant text := E'\u0001';
    v_east constant text := '\u1100-\u11ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff'
        || '\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff';
    -- A unit is a word with what clings to it and the white space behind it, a sign of East Asia,
    -- or 40 characters of what has no spaces. Parted at white space first, because one pattern for
    -- all of it takes five times as long.
    v_units constant text := '([' || v_east || ']|[^\s' || v_east || ']{40})';
    v_has_east constant boolean := $1 collate "C" ~ ('[' || v_east || ']');
begin
    with
    pieces as materialized (
        select p.piece collate "C" as piece, p.n
        from string_to_table(
            regexp_replace(
                replace($1 collate "C", v_sign, ' '), '(\s+)', '\1' || v_sign, 'g'
            ),
            v_sign
        ) with ordinality as p (piece, n)
    ),
    units as materialized (
        select p.piece as unit, p.n, 1::bigint as m
        from pieces as p
        where not (length(p.piece) > 40 or v_has_east and p.piece ~ ('[' || v_east || ']'))
        union all
        select u.unit collate "C", p.n, u.m
        from pieces as p
        cross join lateral string_to_table(
            regexp_replace(p.piece, v_units, '\1' || v_sign, 'g'), v_sign
        ) with ordinality as u (unit, m)
        where
            u.unit <> ''
            and (length(p.piece) > 40 or v_has_east and p.piece ~ ('[' || v_east || ']'))
    ),
    -- With the white space behind it: to trim each unit costs more than to count some words twice.
    words as materialized (
        select d.unit, rtrim(d.unit, E' \t\n\r\f\u00a0\u3000') collate "C" as word
        from (select distinct u.unit from units as u) as d
    ),
    parts as materialized (
        select w.unit, s.part
        from words as w
        cross join lateral string_to_table(
            regexp_replace(
                lower(rag._fold_accents(w.word)),
                '([!-/:-@[-`{-~\u00a1-\u00bf\u2000-\u206f\u3000-\u303f\u20a0-\u20cf'
                || v_east || '])',
                ' \1 ', 'g'
            ) collate "C",
            ' '
        ) as s (part)
        where s.part <> ''
    ),
    costs as materialized (
        select
            d.part,
            case
                when length(d.part) = 1 then 1
                when _token_units.vocabulary is null then rag._guessed_tokens(d.part)
                when exists (
                    select
                    from rag.word_vectors as v
                    where v.set_id = _token_units.vocabulary and v.word = d.part
                ) then 1
                else rag._piece_count(_token_units.vocabulary, d.part)
            end as tokens
        from (select distinct p.part from parts as p) as d
    ),
    counted as materialized (
        select p.unit, sum(c.tokens)::int as tokens
        from parts as p
        join costs as c on c.part = p.part
        group by p.unit
    ),
    placed as (
        select
            u.n,
            u.m,
            length(u.unit) as length,
            coalesce(c.tokens, 0) as tokens,
            sum(length(u.unit)) over w as end_offset,
            sum(coalesce(c.tokens, 0)) over w as tokens_with_it
        from units as u
        left join counted as c on c.unit = u.unit
        window w as (order by u.n, u.m rows unbounded preceding)
    )
    select
        array_agg((p.end_offset - p.length)::int order by p.n, p.m) || length($1),
        array_agg((p.tokens_with_it - p.tokens)::int order by p.n, p.m)
        || coalesce(sum(p.tokens), 0)::int
    into starts, sums
    from placed as p;
end
$$;

comment on function rag._token_units(text, int) is
    'Where the units of a text start that no chunk tears, and how many tokens stand before each; '
    'and, as one element more, where the text ends and how many there are. Without a vocabulary '
    'the number is guessed, and rather too high.';

create or replace function rag._count_tokens(content text, vocabulary int)
    returns int
    language plpgsql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_sums int[] := (rag._token_units(_count_tokens.content, _count_tokens.vocabulary)).sums;
begin
    return v_sums[cardinality(v_sums)];
end
$$;

comment on function rag._count_tokens(text, int) is
    'How many tokens a text has, without those that mark its beginning and end.';
