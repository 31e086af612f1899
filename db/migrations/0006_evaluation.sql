-- Evaluation: questions with judged answers, and the runs that were measured on them.

create sequence rag.eval_set_ids as int;
create sequence rag.eval_run_ids as int;

create table rag.eval_sets (
    tenant_id int not null,
    eval_set_id int not null default nextval('rag.eval_set_ids'),
    collection_id int not null,
    name text not null,
    created_at timestamptz not null default now(),
    primary key (tenant_id, eval_set_id),
    constraint eval_sets_name_is_unique unique (tenant_id, name),
    constraint eval_sets_collection_fkey foreign key (tenant_id, collection_id)
    references rag.collections (tenant_id, collection_id) on delete cascade
);

create index eval_sets_collection_idx on rag.eval_sets (tenant_id, collection_id);

comment on table rag.eval_sets is 'Judged questions on a collection.';

create table rag.eval_queries (
    tenant_id int not null,
    eval_set_id int not null,
    query_id text not null,
    query text not null,
    embedding vector,
    primary key (tenant_id, eval_set_id, query_id),
    constraint eval_queries_set_fkey foreign key (tenant_id, eval_set_id)
    references rag.eval_sets (tenant_id, eval_set_id) on delete cascade
);

comment on table rag.eval_queries is 'The questions of an evaluation set.';
comment on column rag.eval_queries.embedding is 'By the active model; null: text alone.';

-- By uri, not by id: a document that is deleted and put again keeps its judgements.
create table rag.judgements (
    tenant_id int not null,
    eval_set_id int not null,
    query_id text not null,
    uri text not null,
    grade real not null,
    primary key (tenant_id, eval_set_id, query_id, uri),
    constraint judgements_query_fkey foreign key (tenant_id, eval_set_id, query_id)
    references rag.eval_queries (tenant_id, eval_set_id, query_id) on delete cascade,
    constraint judgement_grade_is_sane check (grade between 0 and 100)
);

comment on table rag.judgements is 'Which document answers which question, and how well.';
comment on column rag.judgements.grade is '0: not relevant; the gain of nDCG is 2^grade - 1.';

create table rag.eval_runs (
    tenant_id int not null,
    run_id int not null default nextval('rag.eval_run_ids'),
    eval_set_id int not null,
    label text not null,
    settings jsonb not null,
    queries int not null,
    ndcg double precision not null,
    recall double precision not null,
    mrr double precision not null,
    milliseconds double precision not null,
    created_at timestamptz not null default now(),
    primary key (tenant_id, run_id),
    constraint eval_runs_set_fkey foreign key (tenant_id, eval_set_id)
    references rag.eval_sets (tenant_id, eval_set_id) on delete cascade
);

create index eval_runs_set_idx on rag.eval_runs (tenant_id, eval_set_id);

comment on table rag.eval_runs is 'Measured runs: means over the questions of a set.';
comment on column rag.eval_runs.milliseconds is 'Median time of a search.';

create table rag.eval_results (
    tenant_id int not null,
    run_id int not null,
    query_id text not null,
    ndcg double precision not null,
    recall double precision not null,
    mrr double precision not null,
    uris text[] not null,
    primary key (tenant_id, run_id, query_id),
    constraint eval_results_run_fkey foreign key (tenant_id, run_id)
    references rag.eval_runs (tenant_id, run_id) on delete cascade
);

comment on table rag.eval_results is 'One question of a run: what was found, and how good it was.';
