-- Code, for the strategy of that name: definitions and blocks of lines, told by indentation.

create or replace function rag._code_blocks(
    content text, size int, out starts int[], out ends int[]
)
    returns record
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_variable
declare
    -- What begins a block although no empty line stands before it.
    v_definition constant text :=
        '^\s*(?:(?:export|default|public|private|protected|internal|static|final|abstract|async'
        || '|override|virtual|inline|extern|unsafe|pub(?:\([^)]*\))?|open|sealed|data|suspend'
        || '|partial|const|local|declare)\s+)*'
        || '(?:def|class|struct|enum|union|trait|impl|interface|func|function|fn|fun|mod|module'
        || '|namespace|package|object|record|sub|proc|procedure|template|protocol|extension'
        || '|create(?:\s+or\s+replace)?|alter|drop|macro_rules!)\M';
    -- What belongs to the line below it: comments, decorators, attributes.
    v_lead constant text := '^\s*(?:#|//|--|/\*|\*|@|;|%|"""|\[<?\w|<!--)';
    -- What belongs to the lines above it although it is not indented.
    v_closer constant text :=
        '^\s*(?:[])}>]|end\M|else\M|elif\M|elsif\M|except\M|finally\M|catch\M|rescue\M|ensure\M'
        || '|fi\M|done\M|esac\M|then\M|begin\M|as \$|\$|language\M|returns\M|\{|"""|</'
        || '|#endif|#else)';
    v_indents int[] := '{}';        -- of the open blocks, the outermost first
    v_begins int[] := '{}';
    v_are_leads boolean[] := '{}';  -- nothing but leads so far
    v_depth int := 0;
    v_count int := 0;
    v_indent int;
    v_is_blank boolean;
    v_is_definition boolean;
    v_is_lead boolean;
    v_is_closer boolean;
    v_after_blank boolean := false;
    v_chars int;
    v_place int := 0;
    v_end int := 0;                 -- where the last line that is not blank ended
begin
    starts := '{}';
    ends := '{}';
    for v_chars, v_indent, v_is_blank, v_is_definition, v_is_lead, v_is_closer in
        select
            length(s.whole),
            length(replace(substring(l.line from '^[ \t]*'), E'\t', '    ')),
            s.whole ~ '^\s*$',
            l.line ~* v_definition,
            l.line ~ v_lead,
            l.line ~* v_closer
        from string_to_table(content, E'\n') as s (whole)
        -- The beginning tells what a line is; a line of 10 MB need not be read ten times.
        cross join lateral (select left(s.whole, 300) collate "C" as line offset 0) as l
        union all
        select 0, -1, false, false, false, false
    loop
        if v_is_blank then
            v_after_blank := true;
            v_place := v_place + v_chars + 1;
            continue;
        end if;
        -- Ends: what is indented deeper than this line; and what is as deep, unless the line goes
        -- on with it.
        while v_depth > 0
            and (
                v_indents[v_depth] > v_indent
                or v_indents[v_depth] = v_indent
                and not v_is_closer
                and (
                    v_after_blank
                    or (v_is_definition or v_is_lead) and not v_are_leads[v_depth]
                )
            )
        loop
            if v_end - v_begins[v_depth] <= size then
                -- It takes the place of the blocks inside of it.
                while v_count > 0 and starts[v_count] >= v_begins[v_depth] loop
                    v_count := v_count - 1;
                end loop;
                v_count := v_count + 1;
                starts[v_count] := v_begins[v_depth];
                ends[v_count] := v_end;
            end if;
            v_depth := v_depth - 1;
        end loop;
        exit when v_indent < 0;
        if v_depth = 0 or v_indents[v_depth] < v_indent then
            v_depth := v_depth + 1;
            v_indents[v_depth] := v_indent;
            v_begins[v_depth] := v_place;
            v_are_leads[v_depth] := v_is_lead;
        elsif not v_is_lead then
            v_are_leads[v_depth] := false;
        end if;
        v_after_blank := false;
        v_end := v_place + v_chars;
        v_place := v_end + 1;
    end loop;
    starts := starts[:v_count];
    ends := ends[:v_count];
end
$$;

comment on function rag._code_blocks(text, int) is
    'The largest blocks of code that fit into size: a definition or a paragraph of lines with what '
    'is indented below it, the line that closes it, and comments and decorators above it.';
