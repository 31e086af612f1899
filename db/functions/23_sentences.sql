-- Sentences, for the strategy of that name: where they end in the scripts of the world.

create or replace function rag._titles()
    returns text
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    -- With "etc.", "p.m." or "usw." a sentence may end: whether it does, the small letter behind
    -- them tells.
    select
        'Mr|Mrs|Ms|Dr|Prof|St|Mt|Rev|Hon|Gen|Col|Maj|Capt|Lt|Sgt|Cmdr|Adm|Gov|Sen|Rep|Pres'
        || '|Messrs|vs|cf|approx|esp|al|Univ|Dept|Hr|Hrn|Fr|bzw|vgl|sog|zzgl|inkl|exkl'
        || '|Sra?|Sras|Sres|Srta|Dra|Ud|Uds|Vd|Vds|ej|Avda|Dña|Mme|Mlle|MM|Sig|dott|avv|ing'
        || '|ул|им|проф|акад|см'
$$;

comment on function rag._titles() is
    'Abbreviations that a name or another word follows, to be used as an alternative in a pattern.';

create or replace function rag._numbered()
    returns text
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select
        'pp?|figs?|eqs?|no|nos|vols?|secs?|arts?|ch|chap|cap|ed|par|cl|nr|bd|abb|abs|núm|págs?|kap'
        || '|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|г|гг|стр|рис|табл|т|ст|д'
$$;

comment on function rag._numbered() is
    'Abbreviations that a number follows, to be used as an alternative in a pattern.';

create or replace function rag._sentences(content text)
    returns table (start_offset int, end_offset int)
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_spaces constant text := rag._whitespace();
    -- A sign that is in no text, to be put where one may end. Between a full stop and a capital,
    -- a digit or an opening sign ("¿", "¡", quotes) there is white space; in the scripts of East
    -- Asia there need be none, so closing quotes are waited for. Empty lines and list items end a
    -- sentence, too.
    v_sign constant text := E'\u0001';
    v_ends constant text :=
        '((?:[.!?…؟۔।॥։።።᙮។]+["''”’»›)\]*_`]*[' || '\s\u00a0\u3000' || ']+'
        || '(?=[^\sa-zß-öø-ÿа-яёα-ω])'
        || '|[。！？｡][”’」』）】》〉]*(?=[^”’」』）】》〉' || rag._clinging_marks() || '])'
        || '|\n[ \t\r]*\n\s*'
        || '|\n(?=[ \t]*(?:[-*+•]|[0-9]{1,3}[.)])[ \t])))';
    -- Initials, the abbreviations above, and "3." as in a date or a list.
    v_before constant text := '(?:^|[\s("''«“‘¿¡.\-–—/])(?:';
    -- Initials, titles, "3." as in a date or a list; and, before a number, "Fig." and the like.
    v_no_end constant text :=
        v_before || '[A-ZÀ-ÖØ-ÞА-ЯЁΑ-Ω]|[0-9]{1,2}|' || rag._titles() || ')\.\s*$';
    v_no_end_before_number constant text := v_before || rag._numbered() || ')\.\s*$';
begin
    return query
    with
    -- By paragraph, because a pattern is matched against 4 bytes a character of all it is given.
    pieces as materialized (
        select
            s.piece,
            g.n,
            s.m,
            length(s.piece) as length
        from string_to_table(replace($1 collate "C", v_sign, ' '), E'\n\n')
            with ordinality as g (paragraph, n)
        cross join lateral string_to_table(
            regexp_replace(g.paragraph || E'\n\n', v_ends, '\1' || v_sign, 'g'), v_sign
        ) with ordinality as s (piece, m)
        where s.piece <> ''
    ),
    told as (
        select
            p.*,
            p.piece !~ '\.[\s\u00a0]+$'
            or p.piece ~ '\n[ \t\r]*\n\s*$'
            or not (
                right(p.piece, 24) ~ v_no_end
                or lead(left(p.piece, 1)) over (order by p.n, p.m) between '0' and '9'
                and right(p.piece, 24) ~* v_no_end_before_number
            ) as is_end
        from pieces as p
    ),
    placed as (
        select
            p.piece,
            p.length,
            sum(p.length) over w - p.length as start_offset,
            count(*) filter (where p.is_end) over w - p.is_end::int as number
        from told as p
        window w as (order by p.n, p.m rows unbounded preceding)
    )
    select
        (
            min(d.start_offset)
            + min(d.length - length(ltrim(d.piece, v_spaces)))
                filter (where d.piece <> '' and d.place = 1)
        )::int,
        (max(d.start_offset + length(rtrim(d.piece, v_spaces))))::int
    from (
        select
            l.*,
            row_number() over (partition by l.number order by l.start_offset) as place
        from placed as l
    ) as d
    group by d.number
    having bool_or(btrim(d.piece, v_spaces) <> '')
    order by 1;
end
$$;

comment on function rag._sentences(text) is
    'Where the sentences of a text start and end, without the white space between them.';
