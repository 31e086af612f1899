-- Statistics of BM25, each tenant's own: better ranking, and nobody's words shine through another's
-- scores. Writers append deltas, because they would queue up on the row of a common word; whoever
-- can takes the deltas in (rag._fold_statistics), and readers add up what is not yet taken in.

create table rag.lexical_statistics (
    tenant_id int primary key,
    chunks bigint not null default 0,
    total_length double precision not null default 0,
    reference_length real not null,
    is_settled boolean not null default false,
    constraint reference_length_is_positive check (reference_length > 0)
);

comment on table rag.lexical_statistics is 'BM25: how many chunks a tenant has, and how long.';
comment on column rag.lexical_statistics.reference_length is
    'The mean length that the stored weights were made with; scores are corrected for its drift.';

comment on column rag.lexical_statistics.is_settled is
    'Whether the reference length is that of 1,000 chunks or more.';

create table rag.lexeme_statistics (
    tenant_id int not null,
    lexeme text not null,
    chunks int not null,
    max_weight real not null,
    sum_weight double precision not null,
    sum_square double precision not null,
    primary key (tenant_id, lexeme)
) with (fillfactor = 80);

comment on table rag.lexeme_statistics is 'BM25: in how many of a tenant''s chunks a lexeme is.';
comment on column rag.lexeme_statistics.max_weight is
    'No stored weight of the lexeme is above it: the bound that pruning rests on.';
comment on column rag.lexeme_statistics.sum_weight is
    'The sum of its stored weights; with sum_square it gives mean and deviation of a score.';

create table rag.lexeme_deltas (
    tenant_id int not null,
    delta_id bigint generated always as identity,
    chunks int not null,
    total_length double precision not null,
    size int not null,
    lexemes text[] not null,
    counts int[] not null,
    max_weights real[] not null,
    sum_weights real[] not null,
    sum_squares real[] not null,
    primary key (tenant_id, delta_id)
);

comment on table rag.lexeme_deltas is 'BM25: changes of the statistics that are not taken in yet.';
comment on column rag.lexeme_deltas.size is 'How many lexemes the row has.';
