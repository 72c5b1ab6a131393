BEGIN TRANSACTION;
CREATE TABLE accounts (
	id VARCHAR NOT NULL, 
	member_id VARCHAR, 
	credit_line BIGINT NOT NULL, 
	main BIGINT NOT NULL, 
	reserved BIGINT NOT NULL, 
	held BIGINT NOT NULL, 
	CONSTRAINT pk_accounts PRIMARY KEY (id), 
	CONSTRAINT ck_accounts_credit_line CHECK (credit_line >= 0), 
	CONSTRAINT ck_accounts_held CHECK (held >= 0), 
	CONSTRAINT ck_accounts_floor CHECK (main >= -credit_line), 
	CONSTRAINT ck_accounts_reserved CHECK (reserved >= 0), 
	CONSTRAINT fk_accounts_member_id FOREIGN KEY(member_id) REFERENCES members (id), 
	CONSTRAINT uq_accounts_member_id UNIQUE (member_id)
);
INSERT INTO "accounts" VALUES('commons',NULL,1000000000,28,0,0);
INSERT INTO "accounts" VALUES('acc_06h1g17l624vsmet2r625e31','mem_06h1g17l5uvq66p1d7if8mo0',1000000000,672,0,0);
INSERT INTO "accounts" VALUES('acc_06h1g17l6o11oftlhkq3liib','mem_06h1g17l6kr60d7udq8fvgll',1000000000,-700,0,0);
INSERT INTO "accounts" VALUES('acc_06h1g17l77nqciphsaho1fqf','mem_06h1g17l77cqhhhkcp1051vm',1000000000,-1000,1000,0);
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE api_keys (
	id VARCHAR NOT NULL, 
	member_id VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	digest VARCHAR NOT NULL, 
	display VARCHAR NOT NULL, 
	created_at FLOAT NOT NULL, 
	expires_at FLOAT, 
	revoked_at FLOAT, 
	CONSTRAINT pk_api_keys PRIMARY KEY (id), 
	CONSTRAINT fk_api_keys_member_id FOREIGN KEY(member_id) REFERENCES members (id), 
	CONSTRAINT uq_api_keys_digest UNIQUE (digest)
);
INSERT INTO "api_keys" VALUES('key_06h1g17l60a9m4b271i3s205','mem_06h1g17l5uvq66p1d7if8mo0','key','d180717aebeb843a1afa10978a381451cf5bf61e97aca137d61a64d55f9f36ad','sk-potluck-64UsWO…',1800000000.0,NULL,NULL);
INSERT INTO "api_keys" VALUES('key_06h1g17l6phs3qsg48u31v6r','mem_06h1g17l6kr60d7udq8fvgll','key','a7044bb138e425b12abce3b1a224437a0c403b766fa300e0890073fdb886fc09','sk-potluck-02DLqI…',1800000000.0,NULL,NULL);
INSERT INTO "api_keys" VALUES('key_06h1g17l74pge29ar8lh872o','mem_06h1g17l77cqhhhkcp1051vm','key','7b0e9ae355678595772a7c8ed07e5a629c8346a8fc41e0c313742c1f9d6116b1','sk-potluck-j5WYG0…',1800000000.0,NULL,NULL);
CREATE TABLE attempts (
	job_id VARCHAR NOT NULL, 
	number INTEGER NOT NULL, 
	worker_id VARCHAR NOT NULL, 
	owner_id VARCHAR NOT NULL, 
	assigned_at FLOAT NOT NULL, 
	why TEXT NOT NULL, 
	state VARCHAR NOT NULL, 
	ended_at FLOAT, 
	tokens BIGINT NOT NULL, 
	paid BIGINT NOT NULL, 
	CONSTRAINT pk_attempts PRIMARY KEY (job_id, number), 
	CONSTRAINT ck_attempts_state CHECK (state IN ('assigned', 'running', 'succeeded', 'refused', 'failed', 'lost', 'cancelled')), 
	CONSTRAINT ck_attempts_amounts CHECK (paid >= 0 AND tokens >= 0), 
	CONSTRAINT fk_attempts_job_id FOREIGN KEY(job_id) REFERENCES jobs (id), 
	CONSTRAINT fk_attempts_owner_id FOREIGN KEY(owner_id) REFERENCES accounts (id), 
	CONSTRAINT fk_attempts_worker_id FOREIGN KEY(worker_id) REFERENCES workers (id)
);
INSERT INTO "attempts" VALUES('job_06h1g17lc044ce3jv96hirk6',1,'wrk_06h1g17l8k0k70nli2g75n6p','acc_06h1g17l624vsmet2r625e31',1800000001.0,'free','succeeded',1800000002.0,3,700);
INSERT INTO "attempts" VALUES('job_06h1g17lc1c2n7l9pb6qak74',1,'wrk_06h1g17l8k0k70nli2g75n6p','acc_06h1g17l624vsmet2r625e31',1800000001.0,'free','succeeded',1800000002.0,3,700);
INSERT INTO "attempts" VALUES('job_06h1g17lc22khnt4o0h3vess',1,'wrk_06h1g17l8k0k70nli2g75n6p','acc_06h1g17l624vsmet2r625e31',1800000001.0,'free','assigned',NULL,0,0);
CREATE TABLE certificates (
	serial VARCHAR NOT NULL, 
	worker_id VARCHAR NOT NULL, 
	not_before FLOAT NOT NULL, 
	not_after FLOAT NOT NULL, 
	CONSTRAINT pk_certificates PRIMARY KEY (serial), 
	CONSTRAINT fk_certificates_worker_id FOREIGN KEY(worker_id) REFERENCES workers (id)
);
INSERT INTO "certificates" VALUES('1-wrk_06h1g17l8k0k70nli2g75n6p','wrk_06h1g17l8k0k70nli2g75n6p',1799999700.0,1800604800.0);
INSERT INTO "certificates" VALUES('2-wrk_06h1g17l9u8s913u1hq3tkl6','wrk_06h1g17l9u8s913u1hq3tkl6',1799999700.0,1800604800.0);
CREATE TABLE entries (
	number INTEGER NOT NULL, 
	id VARCHAR NOT NULL, 
	at VARCHAR NOT NULL, 
	code VARCHAR NOT NULL, 
	job_id VARCHAR, 
	details TEXT NOT NULL, 
	previous VARCHAR NOT NULL, 
	hash VARCHAR NOT NULL, 
	CONSTRAINT pk_entries PRIMARY KEY (number), 
	CONSTRAINT ck_entries_code CHECK (code IN ('hold', 'close', 'grant', 'transfer')), 
	CONSTRAINT ck_entries_number CHECK (number >= 1), 
	CONSTRAINT fk_entries_job_id FOREIGN KEY(job_id) REFERENCES jobs (id), 
	CONSTRAINT uq_entries_id UNIQUE (id)
);
INSERT INTO "entries" VALUES(1,'job_06h1g17lc044ce3jv96hirk6/hold','2027-01-15T08:00:00.000Z','hold','job_06h1g17lc044ce3jv96hirk6','{}','0000000000000000000000000000000000000000000000000000000000000000','de0d65652452555d90c4b06e7f9fa41012344accaf6eac4d4493b8efdd6217e0');
INSERT INTO "entries" VALUES(2,'job_06h1g17lc1c2n7l9pb6qak74/hold','2027-01-15T08:00:00.000Z','hold','job_06h1g17lc1c2n7l9pb6qak74','{}','de0d65652452555d90c4b06e7f9fa41012344accaf6eac4d4493b8efdd6217e0','728be1df9f96bf66ecc20997201b8d1782aa5642e14675bfcf669c6d717c0d39');
INSERT INTO "entries" VALUES(3,'job_06h1g17lc22khnt4o0h3vess/hold','2027-01-15T08:00:00.000Z','hold','job_06h1g17lc22khnt4o0h3vess','{}','728be1df9f96bf66ecc20997201b8d1782aa5642e14675bfcf669c6d717c0d39','a81d713e2938bf817ff785f8dbd625fc31d0bfb6187c1ba7bfb60d60da81ecda');
INSERT INTO "entries" VALUES(4,'job_06h1g17lc044ce3jv96hirk6/close','2027-01-15T08:00:00.000Z','close','job_06h1g17lc044ce3jv96hirk6','{"tokens": 3}','a81d713e2938bf817ff785f8dbd625fc31d0bfb6187c1ba7bfb60d60da81ecda','b7db2099c8a74c48fee943d9705cdefc15f1582fb3eb5818719c395b0cf93407');
INSERT INTO "entries" VALUES(5,'job_06h1g17lc1c2n7l9pb6qak74/close','2027-01-15T08:00:00.000Z','close','job_06h1g17lc1c2n7l9pb6qak74','{"tokens": 3}','b7db2099c8a74c48fee943d9705cdefc15f1582fb3eb5818719c395b0cf93407','ffe572fcf9646ae59919d184b7bdd7ebfbfd746d820d83df0d6607439faaa79e');
CREATE TABLE jobs (
	id VARCHAR NOT NULL, 
	kind VARCHAR NOT NULL, 
	model VARCHAR NOT NULL, 
	member_id VARCHAR NOT NULL, 
	account_id VARCHAR NOT NULL, 
	created_at FLOAT NOT NULL, 
	quote BIGINT NOT NULL, 
	hold BIGINT NOT NULL, 
	prompt_tokens BIGINT NOT NULL, 
	max_tokens BIGINT NOT NULL, 
	choices INTEGER NOT NULL, 
	stored BOOLEAN NOT NULL, 
	own_only BOOLEAN NOT NULL, 
	only_workers TEXT NOT NULL, 
	expires_at FLOAT, 
	state VARCHAR NOT NULL, 
	charge BIGINT, 
	output_tokens BIGINT NOT NULL, 
	started_at FLOAT, 
	ended_at FLOAT, 
	why TEXT NOT NULL, 
	code VARCHAR NOT NULL, 
	CONSTRAINT pk_jobs PRIMARY KEY (id), 
	CONSTRAINT ck_jobs_ended CHECK ((ended_at IS NULL) = (state IN ('queued', 'running', 'paused'))), 
	CONSTRAINT ck_jobs_kind CHECK (kind IN ('chat', 'completion', 'embedding')), 
	CONSTRAINT ck_jobs_state CHECK (state IN ('queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled', 'expired')), 
	CONSTRAINT ck_jobs_charge CHECK (charge IS NULL OR (charge >= 0 AND charge <= hold)), 
	CONSTRAINT ck_jobs_amounts CHECK (hold >= 0 AND quote >= 0), 
	CONSTRAINT fk_jobs_account_id FOREIGN KEY(account_id) REFERENCES accounts (id), 
	CONSTRAINT fk_jobs_member_id FOREIGN KEY(member_id) REFERENCES members (id)
);
INSERT INTO "jobs" VALUES('job_06h1g17lc044ce3jv96hirk6','chat','emulator-small','mem_06h1g17l5uvq66p1d7if8mo0','acc_06h1g17l624vsmet2r625e31',1800000000.0,1000,1000,7,16,1,0,0,'["wrk_a", "wrk_b"]',NULL,'succeeded',700,3,1800000001.0,1800000002.0,'','');
INSERT INTO "jobs" VALUES('job_06h1g17lc1c2n7l9pb6qak74','chat','emulator-small','mem_06h1g17l6kr60d7udq8fvgll','acc_06h1g17l6o11oftlhkq3liib',1800000000.0,1000,1000,7,16,1,0,0,'["wrk_a", "wrk_b"]',NULL,'succeeded',700,3,1800000001.0,1800000002.0,'','');
INSERT INTO "jobs" VALUES('job_06h1g17lc22khnt4o0h3vess','chat','emulator-small','mem_06h1g17l77cqhhhkcp1051vm','acc_06h1g17l77nqciphsaho1fqf',1800000000.0,1000,1000,7,16,1,0,0,'["wrk_a", "wrk_b"]',NULL,'running',NULL,0,1800000001.0,NULL,'','');
CREATE TABLE join_tokens (
	id VARCHAR NOT NULL, 
	member_id VARCHAR NOT NULL, 
	digest VARCHAR NOT NULL, 
	uses INTEGER NOT NULL, 
	uses_max INTEGER NOT NULL, 
	created_at FLOAT NOT NULL, 
	expires_at FLOAT NOT NULL, 
	CONSTRAINT pk_join_tokens PRIMARY KEY (id), 
	CONSTRAINT ck_join_tokens_uses CHECK (uses >= 0 AND uses <= uses_max), 
	CONSTRAINT fk_join_tokens_member_id FOREIGN KEY(member_id) REFERENCES members (id), 
	CONSTRAINT uq_join_tokens_digest UNIQUE (digest)
);
INSERT INTO "join_tokens" VALUES('tok_06h1g17l7g32i7b8uduhnfpn','mem_06h1g17l5uvq66p1d7if8mo0','0000000000000000000000000000000000000000000000000000000000000001',1,1,1800000000.0,1800000060.0);
INSERT INTO "join_tokens" VALUES('tok_06h1g17l9jc7q8mmk49i5oh8','mem_06h1g17l6kr60d7udq8fvgll','0000000000000000000000000000000000000000000000000000000000000002',1,1,1800000000.0,1800000060.0);
CREATE TABLE members (
	id VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	name_folded VARCHAR NOT NULL, 
	role VARCHAR NOT NULL, 
	created_at FLOAT NOT NULL, 
	CONSTRAINT pk_members PRIMARY KEY (id), 
	CONSTRAINT ck_members_role CHECK (role IN ('member', 'admin')), 
	CONSTRAINT uq_members_name_folded UNIQUE (name_folded)
);
INSERT INTO "members" VALUES('mem_06h1g17l5uvq66p1d7if8mo0','member-0','member-0','member',1800000000.0);
INSERT INTO "members" VALUES('mem_06h1g17l6kr60d7udq8fvgll','member-1','member-1','member',1800000000.0);
INSERT INTO "members" VALUES('mem_06h1g17l77cqhhhkcp1051vm','member-2','member-2','member',1800000000.0);
CREATE TABLE models (
	name VARCHAR NOT NULL, 
	entry BLOB NOT NULL, 
	added_by VARCHAR NOT NULL, 
	added_at FLOAT NOT NULL, 
	CONSTRAINT pk_models PRIMARY KEY (name), 
	CONSTRAINT fk_models_added_by FOREIGN KEY(added_by) REFERENCES members (id)
);
CREATE TABLE postings (
	entry_number INTEGER NOT NULL, 
	position INTEGER NOT NULL, 
	account_id VARCHAR NOT NULL, 
	bucket VARCHAR NOT NULL, 
	amount BIGINT NOT NULL, 
	CONSTRAINT pk_postings PRIMARY KEY (entry_number, position), 
	CONSTRAINT ck_postings_bucket CHECK (bucket IN ('main', 'reserved', 'held')), 
	CONSTRAINT fk_postings_account_id FOREIGN KEY(account_id) REFERENCES accounts (id), 
	CONSTRAINT fk_postings_entry_number FOREIGN KEY(entry_number) REFERENCES entries (number)
);
INSERT INTO "postings" VALUES(1,0,'acc_06h1g17l624vsmet2r625e31','main',-1000);
INSERT INTO "postings" VALUES(1,1,'acc_06h1g17l624vsmet2r625e31','reserved',1000);
INSERT INTO "postings" VALUES(2,0,'acc_06h1g17l6o11oftlhkq3liib','main',-1000);
INSERT INTO "postings" VALUES(2,1,'acc_06h1g17l6o11oftlhkq3liib','reserved',1000);
INSERT INTO "postings" VALUES(3,0,'acc_06h1g17l77nqciphsaho1fqf','main',-1000);
INSERT INTO "postings" VALUES(3,1,'acc_06h1g17l77nqciphsaho1fqf','reserved',1000);
INSERT INTO "postings" VALUES(4,0,'acc_06h1g17l624vsmet2r625e31','reserved',-1000);
INSERT INTO "postings" VALUES(4,1,'acc_06h1g17l624vsmet2r625e31','main',300);
INSERT INTO "postings" VALUES(4,2,'acc_06h1g17l624vsmet2r625e31','main',686);
INSERT INTO "postings" VALUES(4,3,'commons','main',14);
INSERT INTO "postings" VALUES(5,0,'acc_06h1g17l6o11oftlhkq3liib','reserved',-1000);
INSERT INTO "postings" VALUES(5,1,'acc_06h1g17l6o11oftlhkq3liib','main',300);
INSERT INTO "postings" VALUES(5,2,'acc_06h1g17l624vsmet2r625e31','main',686);
INSERT INTO "postings" VALUES(5,3,'commons','main',14);
CREATE TABLE receipts (
	job_id VARCHAR NOT NULL, 
	attempt BIGINT NOT NULL, 
	worker_id VARCHAR NOT NULL, 
	body BLOB NOT NULL, 
	signature BLOB NOT NULL, 
	state VARCHAR NOT NULL, 
	why TEXT NOT NULL, 
	at FLOAT NOT NULL, 
	CONSTRAINT pk_receipts PRIMARY KEY (job_id, attempt, worker_id), 
	CONSTRAINT ck_receipts_state CHECK (state IN ('matched', 'late', 'refused', 'void'))
);
INSERT INTO "receipts" VALUES('job_06h1g17lc044ce3jv96hirk6',1,'wrk_06h1g17l8k0k70nli2g75n6p',X'7B226A6F62223A317D',X'00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000','matched','',1800000002.0);
INSERT INTO "receipts" VALUES('job_06h1g17lc1c2n7l9pb6qak74',1,'wrk_06h1g17l8k0k70nli2g75n6p',X'7B226A6F62223A317D',X'00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000','matched','',1800000002.0);
CREATE TABLE settings (
	name VARCHAR NOT NULL, 
	value TEXT NOT NULL, 
	CONSTRAINT pk_settings PRIMARY KEY (name)
);
INSERT INTO "settings" VALUES('created_at','1800000000.0');
INSERT INTO "settings" VALUES('marker','kept');
CREATE TABLE stored_requests (
	job_id VARCHAR NOT NULL, 
	request BLOB NOT NULL, 
	CONSTRAINT pk_stored_requests PRIMARY KEY (job_id), 
	CONSTRAINT fk_stored_requests_job_id FOREIGN KEY(job_id) REFERENCES jobs (id)
);
CREATE TABLE stored_results (
	job_id VARCHAR NOT NULL, 
	result BLOB NOT NULL, 
	CONSTRAINT pk_stored_results PRIMARY KEY (job_id), 
	CONSTRAINT fk_stored_results_job_id FOREIGN KEY(job_id) REFERENCES jobs (id)
);
CREATE TABLE workers (
	id VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	member_id VARCHAR NOT NULL, 
	join_token_id VARCHAR NOT NULL, 
	receipt_key BLOB NOT NULL, 
	tls_key BLOB NOT NULL, 
	certificate_serial VARCHAR NOT NULL, 
	certificate_until FLOAT NOT NULL, 
	created_at FLOAT NOT NULL, 
	revoked_at FLOAT, 
	CONSTRAINT pk_workers PRIMARY KEY (id), 
	CONSTRAINT fk_workers_join_token_id FOREIGN KEY(join_token_id) REFERENCES join_tokens (id), 
	CONSTRAINT fk_workers_member_id FOREIGN KEY(member_id) REFERENCES members (id), 
	CONSTRAINT uq_workers_receipt_key UNIQUE (receipt_key), 
	CONSTRAINT uq_workers_tls_key UNIQUE (tls_key)
);
INSERT INTO "workers" VALUES('wrk_06h1g17l8k0k70nli2g75n6p','worker-0','mem_06h1g17l5uvq66p1d7if8mo0','tok_06h1g17l7g32i7b8uduhnfpn',X'0000000000000000000000000000000000000000000000000000000000000001',X'00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000001','1-wrk_06h1g17l8k0k70nli2g75n6p',1800604800.0,1800000000.0,NULL);
INSERT INTO "workers" VALUES('wrk_06h1g17l9u8s913u1hq3tkl6','worker-1','mem_06h1g17l6kr60d7udq8fvgll','tok_06h1g17l9jc7q8mmk49i5oh8',X'0000000000000000000000000000000000000000000000000000000000000002',X'00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000002','2-wrk_06h1g17l9u8s913u1hq3tkl6',1800604800.0,1800000000.0,NULL);
CREATE INDEX ix_api_keys_member_id ON api_keys (member_id);
CREATE INDEX ix_join_tokens_member_id ON join_tokens (member_id);
CREATE INDEX ix_workers_member_id ON workers (member_id);
CREATE INDEX ix_certificates_worker_id ON certificates (worker_id);
CREATE INDEX ix_jobs_created_at ON jobs (created_at);
CREATE INDEX ix_jobs_member_id_created_at ON jobs (member_id, created_at);
CREATE INDEX ix_jobs_open ON jobs (id) WHERE ended_at IS NULL;
CREATE INDEX ix_attempts_worker_id ON attempts (worker_id);
CREATE INDEX ix_entries_job_id ON entries (job_id);
CREATE INDEX ix_postings_account_id ON postings (account_id);
CREATE TRIGGER entries_no_update BEFORE UPDATE ON entries BEGIN
  SELECT RAISE(ABORT, 'the ledger is append-only: entries are never changed');
END;
CREATE TRIGGER entries_no_delete BEFORE DELETE ON entries BEGIN
  SELECT RAISE(ABORT, 'the ledger is append-only: entries are never deleted');
END;
CREATE TRIGGER entries_no_replace BEFORE INSERT ON entries
WHEN EXISTS (SELECT 1 FROM entries WHERE number = NEW.number OR id = NEW.id) BEGIN
  SELECT RAISE(ABORT, 'the ledger is append-only: entries are recorded once');
END;
CREATE TRIGGER postings_no_update BEFORE UPDATE ON postings BEGIN
  SELECT RAISE(ABORT, 'the ledger is append-only: postings are never changed');
END;
CREATE TRIGGER postings_no_delete BEFORE DELETE ON postings BEGIN
  SELECT RAISE(ABORT, 'the ledger is append-only: postings are never deleted');
END;
CREATE TRIGGER postings_no_replace BEFORE INSERT ON postings
WHEN EXISTS (SELECT 1 FROM postings WHERE entry_number = NEW.entry_number AND position = NEW.position) BEGIN
  SELECT RAISE(ABORT, 'the ledger is append-only: postings are recorded once');
END;
COMMIT;
