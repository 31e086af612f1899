-- Metadata filters: the $-operators of MongoDB, Pinecone, Chroma and LangChain, compiled to one
-- jsonpath predicate over chunks.metadata; docs/filters.md says what each means.
--
-- Keys and literals enter the jsonpath as JSON text only (every JSON string is a jsonpath string),
-- and the jsonpath enters SQL as a value only.
--
-- jsonpath has three truth values: a comparison of two types is unknown, and so is its negation.
-- Under `&&` and `||` unknown may pass for false, and exists($ ? (...)) makes false of it; that
-- therefore wraps the whole predicate and whatever is negated, so that !exists($ ? (p)) is the
-- exact negation of p.
--
-- Lax mode opens one level of arrays for a comparison and one for a member: "matches if any element
-- does". A step ? (...) opens one as well, and with a comparison inside $.k ? (@ == 1) would match
-- [[1]]: leaves are therefore written $.k == 1, or ask for the type before they compare.

create or replace function rag._join_predicates(predicates text[], connective text)
    returns text
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_predicates text[] := predicates;
begin
    -- Postgres walks a jsonpath recursively: a chain of 30,000 exceeds the default stack, one of
    -- 10,000 a stack of 100 kB. Groups of 100 do not.
    while cardinality(v_predicates) > 100 loop
        v_predicates := array(
            select '(' || string_agg(p.predicate, connective order by p.place) || ')'
            from unnest(v_predicates) with ordinality as p (predicate, place)
            group by (p.place - 1) / 100
            order by (p.place - 1) / 100
        );
    end loop;
    return '(' || array_to_string(v_predicates, connective) || ')';
end
$$;

comment on function rag._join_predicates(text[], text) is
    'Jsonpath predicates joined by a connective, in parentheses, in groups if they are many.';

create or replace function rag._compile_equality(path text, operand jsonb)
    returns text
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    return case operand
        when 'null' then '(!exists(' || path || ') || ' || path || ' == null)'
        else path || ' == ' || operand::text
    end;
end
$$;

comment on function rag._compile_equality(text, jsonb) is
    'The jsonpath predicate "equals this scalar"; a missing key equals null.';

create or replace function rag._compile_membership(path text, operands jsonb)
    returns text
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_predicates text[] := '{}';
    v_type text;
    v_literals text[];
    v_bounds text[];
    v_trees text[];
begin
    if operands = '[]' then
        return '!exists($)';
    elsif jsonb_array_length(operands) <= 4 then
        return rag._join_predicates(
            array(
                select rag._compile_equality(path, o.operand)
                from jsonb_array_elements(operands) as o (operand)
            ),
            ' || '
        );
    end if;

    foreach v_type in array array['null', 'boolean', 'number', 'string'] loop
        -- In the order of jsonpath's own comparisons: numbers by value, strings by code point.
        v_literals := case v_type
            when 'number' then array(
                select distinct on (o.operand::numeric) o.operand::text
                from jsonb_array_elements(operands) as o (operand)
                where jsonb_typeof(o.operand) = 'number'
                order by o.operand::numeric
            )
            else array(
                select distinct on (convert_to(o.operand #>> '{}', 'UTF8')) o.operand::text
                from jsonb_array_elements(operands) as o (operand)
                where jsonb_typeof(o.operand) = v_type
                order by convert_to(o.operand #>> '{}', 'UTF8')
            )
        end;

        if cardinality(v_literals) <= 4 then
            v_predicates := v_predicates || array(
                select rag._compile_equality(path, l.literal::jsonb)
                from unnest(v_literals) as l (literal)
            );
            continue;
        end if;

        -- More than four become a search tree, of which the index takes the leaves just as of a
        -- plain `||`. Without index, 50,000 rows, in ms, tree against plain: 4 values 26 and 23,
        -- 16 44 and 82, 1,000 91 and 4,400, 10,000 130 and 43,000.
        select array_agg(g.bound order by g.place), array_agg(g.tree order by g.place)
        into v_bounds, v_trees
        from (
            select
                (l.place - 1) / 4 as place,
                (array_agg(l.literal order by l.place))[1] as bound,
                '(' || string_agg('@ == ' || l.literal, ' || ' order by l.place) || ')' as tree
            from unnest(v_literals) with ordinality as l (literal, place)
            group by (l.place - 1) / 4
        ) as g;

        while cardinality(v_trees) > 1 loop
            select
                array_agg(v_bounds[n.place] order by n.place),
                array_agg(
                    case n.place when cardinality(v_trees) then v_trees[n.place]
                    else
                        '(@ < ' || v_bounds[n.place + 1] || ' && ' || v_trees[n.place]
                        || ' || @ >= ' || v_bounds[n.place + 1] || ' && ' || v_trees[n.place + 1]
                        || ')'
                    end
                    order by n.place
                )
            into v_bounds, v_trees
            from generate_series(1, cardinality(v_trees), 2) as n (place);
        end loop;

        -- For a value of another type every comparison is unknown, and nothing would be skipped.
        v_predicates := v_predicates || (
            'exists(' || path || ' ? (@.type() == "' || v_type || '" && ' || v_trees[1] || '))'
        );
    end loop;

    return rag._join_predicates(v_predicates, ' || ');
end
$$;

comment on function rag._compile_membership(text, jsonb) is
    'The jsonpath predicate "equals one of these scalars".';

create or replace function rag._compile_containment(parent text, member text, operand jsonb)
    returns text
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_array text := '@' || member || '.type() == "array" && @' || member || ' == ' || operand::text;
    v_string text := '@' || member || '.type() == "string" && @' || member || ' like_regex '
        || operand::text || ' flag "q"';
begin
    -- One object at a time, because like_regex, too, looks into the elements of an array. Flag q
    -- takes the pattern literally.
    return 'exists(' || parent || ' ? (@.type() == "object" && ('
        || case jsonb_typeof(operand) when 'string' then v_string || ' || ' else '' end
        || v_array || ')))';
end
$$;

comment on function rag._compile_containment(text, text, jsonb) is
    'The jsonpath predicate "is an array with this element, or a string with this substring".';

create or replace function rag._filter_detail(operand jsonb)
    returns text
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_operand text := operand::text;
begin
    -- Cut, because a value may be megabytes.
    return format(
        'The value is %s%s.',
        left(v_operand, 200), case when length(v_operand) > 200 then '...' else '' end
    );
end
$$;

comment on function rag._filter_detail(jsonb) is
    'DETAIL of the errors about filters: the value that was refused.';

create or replace function rag._compile_operator(
    operator text, operand jsonb, parent text, member text, place text
)
    returns text
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_path text := parent || member;
    v_type text := jsonb_typeof(operand);
    v_needs text;
    v_predicate text;
begin
    if operator in ('$eq', '$ne') then
        v_needs := case
            when v_type in ('array', 'object')
            then 'a string, number, boolean or null'
        end;
    elsif operator = '$contains' then
        -- A literal of 1,000 characters takes 0.4 ms to compile, one of 100,000 is refused.
        v_needs := case
            when v_type in ('array', 'object') or length(operand #>> '{}') > 1000
            then 'a string of at most 1,000 characters, a number, a boolean or null'
        end;
    elsif operator in ('$gt', '$gte', '$lt', '$lte') then
        v_needs := case
            when v_type not in ('number', 'string')
            then 'a number or a string'
        end;
    elsif operator in ('$in', '$nin') then
        -- Strict, because lax would look into the elements.
        v_needs := case
            when v_type <> 'array'
                or operand @? 'strict $[*] ? (@.type() == "array" || @.type() == "object")'
            then 'an array of strings, numbers, booleans and nulls'
        end;
    elsif operator = '$exists' then
        v_needs := case
            when v_type <> 'boolean'
            then 'true or false'
        end;
    else
        raise exception 'unknown filter operator "%" at %', left(operator, 100), place using
            errcode = 'invalid_parameter_value',
            detail = rag._filter_detail(operand),
            hint = 'Operators are $eq, $ne, $gt, $gte, $lt, $lte, $in, $nin, $and, $or, $not, '
                '$exists and $contains.';
    end if;

    if member is null then
        raise exception 'filter operator "%" at % stands outside a key', operator, place using
            errcode = 'invalid_parameter_value',
            detail = rag._filter_detail(operand),
            hint = 'Name the key it is about, as in {"page": {"$gte": 5}}.';
    elsif v_needs is not null then
        raise exception 'filter operator "%" at % needs %', operator, place, v_needs using
            errcode = 'invalid_parameter_value',
            detail = rag._filter_detail(operand),
            hint = case
                when operator in ('$gt', '$gte', '$lt', '$lte')
                    then 'Dates are strings such as "2024-05-02"; what is null or missing is found '
                    'by {"key": null}.'
                when operator = '$exists' then 'As in {"page": {"$exists": true}}.'
                else 'For one of several values use $in, for an element of an array or a part of a '
                    'string $contains, for the keys of an object their names.'
            end;
    end if;

    v_predicate := case operator
        when '$gt' then v_path || ' > ' || operand::text
        when '$gte' then v_path || ' >= ' || operand::text
        when '$lt' then v_path || ' < ' || operand::text
        when '$lte' then v_path || ' <= ' || operand::text
        when '$in' then rag._compile_membership(v_path, operand)
        when '$nin' then rag._compile_membership(v_path, operand)
        when '$exists' then 'exists(' || v_path || ')'
        when '$contains' then rag._compile_containment(parent, member, operand)
        else rag._compile_equality(v_path, operand)
    end;
    if operator in ('$ne', '$nin') or (operator = '$exists' and operand = 'false') then
        return '!exists($ ? (' || v_predicate || '))';
    end if;
    return v_predicate;
end
$$;

comment on function rag._compile_operator(text, jsonb, text, text, text) is
    'The jsonpath predicate of an operator that compares the values of one key.';

create or replace function rag._compile_connective(
    operator text, operand jsonb, parent text, member text, place text, depth int
)
    returns text
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    if operator = '$not' and jsonb_typeof(operand) <> 'object' then
        raise exception 'filter operator "$not" at % needs an object',
            coalesce(place, 'the top level') using
            errcode = 'invalid_parameter_value',
            detail = rag._filter_detail(operand),
            hint = 'Give it a filter or operators, as in {"page": {"$not": {"$gt": 5}}}.';
    elsif operator = '$not' then
        return '!exists($ ? ('
            || rag._compile_condition(
                operand, parent, member, concat_ws('.', place, '$not'), depth + 1
            )
            || '))';
    elsif
        jsonb_typeof(operand) <> 'array'
        or operand = '[]'
        or operand @? 'strict $[*] ? (@.type() != "object")'
    then
        raise exception 'filter operator "%" at % needs a non-empty array of objects',
            operator, coalesce(place, 'the top level') using
            errcode = 'invalid_parameter_value',
            detail = rag._filter_detail(operand),
            hint = 'Give it filters, as in {"$or": [{"lang": "en"}, {"lang": "de"}]}.';
    end if;

    return rag._join_predicates(
        array(
            select rag._compile_condition(
                e.element, parent, member,
                concat_ws('.', place, format('%s[%s]', operator, e.number - 1)), depth + 1
            )
            from jsonb_array_elements(operand) with ordinality as e (element, number)
            order by e.number
        ),
        case operator when '$and' then ' && ' else ' || ' end
    );
end
$$;

comment on function rag._compile_connective(text, jsonb, text, text, text, int) is
    'The jsonpath predicate of $and, $or or $not.';

create or replace function rag._compile_condition(
    condition jsonb, parent text, member text, place text, depth int
)
    returns text
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_predicates text[] := '{}';
    v_key text;
    v_operand jsonb;
    v_parent text;
    v_member text;
    v_place text;
begin
    if depth > 32 then
        raise exception 'filter is nested more than 32 levels deep' using
            errcode = 'invalid_parameter_value',
            detail = rag._filter_detail(condition),
            hint = 'Put conditions side by side: the keys of one object are an "and" already.';
    end if;
    if condition = '{}' and member is not null then
        raise exception 'empty condition at %', place using
            errcode = 'invalid_parameter_value',
            detail = rag._filter_detail(condition),
            hint = 'Whether there is a value at all asks {"$exists": true}.';
    elsif condition = '{}' then
        return 'exists($)';
    end if;

    for v_key, v_operand in select e.key, e.value from jsonb_each(condition) as e loop
        if v_key in ('$and', '$or', '$not') then
            v_predicates := v_predicates || rag._compile_connective(
                v_key, v_operand, parent, member, place, depth
            );
        elsif v_key like '$%' then
            v_predicates := v_predicates || rag._compile_operator(
                v_key, v_operand, parent, member, coalesce(place, 'the top level')
            );
        else
            v_parent := parent || coalesce(member, '');
            v_member := '.' || to_json(v_key)::text;
            v_place := left(concat_ws('.', place, v_key), 200);
            v_predicates := v_predicates || case jsonb_typeof(v_operand)
                when 'object' then
                    rag._compile_condition(v_operand, v_parent, v_member, v_place, depth + 1)
                else rag._compile_operator('$eq', v_operand, v_parent, v_member, v_place)
            end;
        end if;
    end loop;

    if cardinality(v_predicates) = 1 then
        return v_predicates[1];
    end if;
    return rag._join_predicates(v_predicates, ' && ');
end
$$;

comment on function rag._compile_condition(jsonb, text, text, text, int) is
    'The jsonpath predicate of an object of a filter: its keys and operators, joined by "and".';

create or replace function rag._compile_filter(filter jsonb)
    returns jsonpath
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    if filter is null or filter = '{}' then
        return null;
    end if;
    if jsonb_typeof(filter) <> 'object' then
        raise exception 'filter is not an object' using
            errcode = 'invalid_parameter_value',
            detail = rag._filter_detail(filter),
            hint = 'A filter looks like {"lang": "en", "page": {"$gte": 5}}.';
    end if;

    -- Less text can hold neither 10,000 values nor 33 times "$contains".
    if length(filter::text) > 500 then
        -- Strict, because lax would count the elements of arrays twice.
        if jsonb_array_length(jsonb_path_query_array(filter, 'strict $.** ? (
            (@.type() != "object" || !exists(@.*)) && (@.type() != "array" || !exists(@[*]))
        )')) > 10000 then
            raise exception 'filter has more than 10,000 values' using
                errcode = 'invalid_parameter_value',
                detail = rag._filter_detail(filter),
                hint = 'Put what the values have in common into a key of its own.';
        end if;
        -- Postgres keeps 32 compiled regular expressions; with one more each row compiles all of
        -- them again: 5,000 rows take 0.07 s with 32 and 0.75 s with 33.
        if jsonb_array_length(jsonb_path_query_array(
            filter, 'strict $.** ? (@.type() == "object" && exists(@."$contains"))'
        )) > 32 then
            raise exception 'filter has more than 32 times "$contains"' using
                errcode = 'invalid_parameter_value',
                detail = rag._filter_detail(filter),
                hint = 'Keep words that are asked for in an array, and use $in on that.';
        end if;
    end if;

    return ('exists($ ? (' || rag._compile_condition(filter, '$', null, null, 1) || '))')::jsonpath;
end
$$;

comment on function rag._compile_filter(jsonb) is
    'A metadata filter as a jsonpath for chunks.metadata @@ ...; null if it lets everything pass.';
