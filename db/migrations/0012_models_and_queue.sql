-- More than one model: settings of their own, a model for each tenant, chunks queued for a new one
-- in batches. And a queue that can be paused and slowed down.
--
-- Takes rag.models, rag.tenants and rag.jobs exclusively for a moment, and builds an index on
-- rag.jobs: a second for a million of them.

alter table rag.models
add column settings jsonb not null default '{}',
add column is_paused boolean not null default false,
add column activated_at timestamptz,
add column dropped_at timestamptz,
add constraint model_settings_are_an_object check (jsonb_typeof(settings) = 'object');

update rag.models
set activated_at = created_at
where is_active;

comment on table rag.models is
    'Embedding models; one of them is active, and a tenant may have another one.';
comment on column rag.models.settings is
    'What its provider needs to know, such as url and max_tokens; never a secret.';
comment on column rag.models.is_paused is 'Nothing is embedded by it until rag.resume_jobs.';
comment on column rag.models.activated_at is
    'When it became the active one; the latest but one is what rag.rollback_model goes back to.';
comment on column rag.models.dropped_at is
    'Its tables are being dropped, many at a time: nobody may use it any more.';

alter table rag.tenants
add column model_id int references rag.models (model_id),
add column previous_model_id int references rag.models (model_id),
add column is_paused boolean not null default false,
add column paused_models int[] not null default '{}';

create index tenants_model_id_idx on rag.tenants (model_id);
create index tenants_previous_model_id_idx on rag.tenants (previous_model_id);

comment on column rag.tenants.model_id is
    'The model that the tenant''s searches use; null: the active one of the database.';
comment on column rag.tenants.previous_model_id is 'What model_id was before it was changed.';
comment on column rag.tenants.is_paused is
    'Nothing of the tenant is embedded until rag.resume_jobs.';
comment on column rag.tenants.paused_models is 'By these models nothing of the tenant is embedded.';

-- A model that was added to a database of millions of chunks is not queued for all of them at once:
-- claims queue them in batches, tenant by tenant. A row goes when the last batch is queued.
create table rag.backfills (
    model_id int primary key references rag.models (model_id) on delete cascade,
    after_tenant int not null default 0,
    after_chunk bigint not null default 0,
    created_at timestamptz not null default now()
);

comment on table rag.backfills is
    'Models that are not queued for every chunk yet: all up to this tenant and chunk are.';

-- A bucket that fills at the rate allowed and is emptied by claims: workers share it, because it
-- is here and not in them.
create table rag.rate_limits (
    rate_limit_id int generated always as identity primary key,
    provider text,
    model_id int references rag.models (model_id) on delete cascade,
    requests_per_minute int,
    tokens_per_minute int,
    requests_left double precision not null,
    tokens_left double precision not null,
    filled_at timestamptz not null default clock_timestamp(),
    constraint rate_limits_are_unique unique nulls not distinct (model_id, provider),
    constraint rate_limit_is_of_one check ((provider is null) <> (model_id is null)),
    constraint rate_limit_is_a_limit
    check (requests_per_minute is not null or tokens_per_minute is not null),
    constraint rate_limit_is_positive check (requests_per_minute > 0 and tokens_per_minute > 0)
);

comment on table rag.rate_limits is
    'How many requests and tokens a minute a provider or one model takes, over all workers.';
comment on column rag.rate_limits.requests_left is 'In the bucket at filled_at; queries may owe.';

-- Is anything due for this model, and when will it be: the first entry of each priority tells. The
-- index on due_at alone knew no model, and to ask for one model's next job read all that wait.
create index jobs_model_due_idx on rag.jobs (model_id, priority, due_at)
where failed_at is null;
drop index rag.jobs_next_due_idx;

create index tenants_paused_idx on rag.tenants (tenant_id)
where is_paused or paused_models <> '{}';

-- They have one parameter more from now on.
drop function if exists rag.claim_jobs(text, int, interval);
drop function if exists rag.next_due();

-- Their results have other columns now, which no "create or replace" can change.
drop function if exists rag._parse_query(text, text);
