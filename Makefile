# make              the module and the daemon, into build/
# make routes guide worker/api/routes.c and api/guide.md out of api/openapi.yaml, after a change there (python3-yaml)
# make test         every test (what ./test runs once the packages are there)
# make bench        benchmarks: ratios, each beside its reference
# make asan         both once more under AddressSanitizer and UBSan, with fault points, into build/asan/
# make lint format  clang-format, clang-tidy, cppcheck, shellcheck
# make fuzz SECONDS=60    each fuzz target that long, or RUNS= times, then raw requests to nginx, and a hostile
#                         Redis behind it; TARGETS=, SEED= as printed
# make model SEED= EVENTS=1000000    random histories of orders beside a model of the money; HISTORY=20000 each
# make soak MINUTES=30 RATE=1000 SEED=    constant load with reloads: what everything takes, and which of it grows
# make faults SEED= RUNS=10 SECONDS=15 JOBS=2    traffic, random faults, and an auditor that compares: t/fault/run; then as many
#                                                runs of payouts, bills and notices: t/fault/payouts.t
# make install DESTDIR= PREFIX=/usr/local
#
# NGINX_SRC=DIR builds the module in a plain nginx source tree instead of Debian's nginx-dev.

PREFIX  ?= /usr/local
DESTDIR ?=
CC      ?= cc
CLANG   ?= clang
OPT     ?= -O2 -g
SECONDS ?= 60

BUILD   := build
TOP     := $(CURDIR)

include protocol/module.mk
include worker/module.mk

WARN    := -Wall -Wextra -Werror
PKGS    := libpq hiredis jansson libcrypto libcurl
CFLAGS  := -std=c11 -D_GNU_SOURCE $(OPT) $(WARN) -fPIC -fvisibility=hidden -pthread -I. -Iprotocol
HARDEN  := -D_FORTIFY_SOURCE=2 -fstack-protector-strong
ASAN    := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -DAFFILIATED_FAULTS
PKG_CFLAGS = $(shell pkg-config --cflags $(PKGS))
PKG_LIBS   = $(shell pkg-config --libs $(PKGS)) -lresolv

MODULE   := $(BUILD)/ngx_http_affiliate_module.so
DAEMON   := $(BUILD)/affiliated
SQL      := $(sort $(wildcard sql/*.sql))
UNITS    := $(patsubst t/unit/%.c,$(BUILD)/t/unit/%,$(wildcard t/unit/*.c))
FUZZERS  := $(filter-out replay make_seeds,$(patsubst t/fuzz/%.c,%,$(wildcard t/fuzz/*.c)))
REPLAYS  := $(FUZZERS:%=$(BUILD)/t/replay/%)
TOOLS    := $(patsubst t/lib/%.c,$(BUILD)/t/lib/%,$(wildcard t/lib/*.c))

.PHONY: all routes guide test bench asan tsan lint format fuzz model soak install clean tests faults

all: $(MODULE) $(DAEMON)

# --- the module -------------------------------------------------------------------------------------------------

# A nginx source tree, and the flags that its nginx was configured with: they decide binary compatibility.
ifdef NGINX_SRC
NGINX_DIR   := $(NGINX_SRC)
NGINX_FLAGS := --with-compat --with-threads
else
NGINX_DIR   := /usr/share/nginx/src
NGINX_FLAGS  = $$(. $(NGINX_DIR)/conf_flags; printf "%q " "$${NGX_CONF_FLAGS[@]}")
endif

# The generated makefile knows the sources by name: made again when one comes or goes.
MODULE_FILES := $(sort $(wildcard ngx_module/*.[ch] protocol/*.[ch]))
$(shell mkdir -p $(BUILD); printf '%s\n' '$(MODULE_FILES)' | cmp -s - $(BUILD)/module.list || \
    printf '%s\n' '$(MODULE_FILES)' > $(BUILD)/module.list)

# $(1) build directory, $(2) compiler flags, $(3) linker flags. Two makes at once would spoil configure's probes: locked.
define module
$(1)/nginx/Makefile: config $(BUILD)/module.list
	@mkdir -p $(1)/nginx
	@cd $$(NGINX_DIR) && flock $(TOP)/$(1)/nginx.lock bash -c 'flags=($$(NGINX_FLAGS)); \
	    ./configure "$$$${flags[@]}" --with-cc-opt="$(2) -fPIC -D_FORTIFY_SOURCE=2" \
	    --with-ld-opt="$(3) -Wl,-z,relro -Wl,-z,now" --add-dynamic-module=$(TOP) --builddir=$(TOP)/$(1)/nginx' \
	    > $(TOP)/$(1)/configure.log || { tail -20 $(TOP)/$(1)/configure.log; rm -f $(TOP)/$(1)/nginx/Makefile; exit 1; }

$(1)/ngx_http_affiliate_module.so: $(1)/nginx/Makefile $(MODULE_FILES)
	@flock $(1)/nginx.lock $$(MAKE) --no-print-directory -s -C $$(NGINX_DIR) -f $(TOP)/$(1)/nginx/Makefile modules
	@cp $(1)/nginx/ngx_http_affiliate_module.so $$@.part && mv $$@.part $$@
endef

$(eval $(call module,$(BUILD),$(OPT),))
$(eval $(call module,$(BUILD)/asan,-O1 -g $(ASAN),$(ASAN)))

# --- the daemon -------------------------------------------------------------------------------------------------

$(BUILD)/migrations.c: worker/migrations.sh $(SQL)
	@mkdir -p $(@D)
	sh worker/migrations.sh $(SQL) > $@.part && mv $@.part $@

# Committed, so that a build needs no Python.
routes:
	api/routes < api/openapi.yaml > worker/api/routes.c.part && mv worker/api/routes.c.part worker/api/routes.c

guide:
	api/guide < api/openapi.yaml > api/guide.md.part && mv api/guide.md.part api/guide.md

DAEMON_SRCS := $(WORKER_SRCS) $(PROTOCOL_SRCS) $(BUILD)/migrations.c

# $(1) object directory, $(2) extra flags
define objects
$(1)/%.o: %.c
	@mkdir -p $$(@D)
	$$(CC) $$(CFLAGS) $(2) $$(PKG_CFLAGS) -MMD -MP -c $$< -o $$@
endef

$(eval $(call objects,$(BUILD)/o,$(HARDEN)))
$(eval $(call objects,$(BUILD)/asan/o,$(ASAN)))
$(eval $(call objects,$(BUILD)/tsan/o,-fsanitize=thread))

$(DAEMON): $(DAEMON_SRCS:%.c=$(BUILD)/o/%.o)
	$(CC) -pthread -Wl,-z,relro -Wl,-z,now -pie $^ $(PKG_LIBS) -o $@

$(BUILD)/asan/affiliated: $(DAEMON_SRCS:%.c=$(BUILD)/asan/o/%.o)
	$(CC) -pthread $(ASAN) $^ $(PKG_LIBS) -o $@

$(BUILD)/tsan/affiliated: $(DAEMON_SRCS:%.c=$(BUILD)/tsan/o/%.o)
	$(CC) -pthread -fsanitize=thread $^ $(PKG_LIBS) -o $@

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)

asan: $(BUILD)/asan/ngx_http_affiliate_module.so $(BUILD)/asan/affiliated

tsan: $(BUILD)/tsan/affiliated

# --- tests ------------------------------------------------------------------------------------------------------

PROTOCOL_OBJS := $(PROTOCOL_SRCS:%.c=$(BUILD)/o/%.o)
PROTOCOL_ASAN := $(PROTOCOL_SRCS:%.c=$(BUILD)/asan/o/%.o)

$(BUILD)/t/unit/%: t/unit/%.c t/unit/unit.h $(PROTOCOL_ASAN)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(ASAN) $< $(PROTOCOL_ASAN) $(PROTOCOL_LIBS) -lcmocka -o $@

# The parts of the role api that need neither PostgreSQL nor a socket.
API_UNITS := api_codes api_csv api_request
API_ASAN  := $(API_PURE_SRCS:%.c=$(BUILD)/asan/o/%.o)

$(API_UNITS:%=$(BUILD)/t/unit/%): $(BUILD)/t/unit/%: t/unit/%.c t/unit/unit.h $(API_ASAN) $(PROTOCOL_ASAN)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(ASAN) $(PKG_CFLAGS) $< $(API_ASAN) $(PROTOCOL_ASAN) -ljansson -lcrypto -lcmocka -o $@

# The same of the roles mail and sites.
MAIL_UNITS := mail_letters site_answers webhook_calls
MAIL_ASAN  := $(MAIL_PURE_SRCS:%.c=$(BUILD)/asan/o/%.o) $(API_ASAN)

$(MAIL_UNITS:%=$(BUILD)/t/unit/%): $(BUILD)/t/unit/%: t/unit/%.c t/unit/unit.h $(MAIL_ASAN) $(PROTOCOL_ASAN)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(ASAN) $(PKG_CFLAGS) $< $(MAIL_ASAN) $(PROTOCOL_ASAN) -ljansson -lcrypto -lresolv -lcmocka -o $@

# The same of the role payouts.
PAYOUT_UNITS := npi_messages
PAYOUT_ASAN  := $(PAYOUT_PURE_SRCS:%.c=$(BUILD)/asan/o/%.o) $(API_ASAN)

$(PAYOUT_UNITS:%=$(BUILD)/t/unit/%): $(BUILD)/t/unit/%: t/unit/%.c t/unit/unit.h $(PAYOUT_ASAN) $(PROTOCOL_ASAN)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(ASAN) $(PKG_CFLAGS) $< $(PAYOUT_ASAN) $(PROTOCOL_ASAN) -ljansson -lcrypto -lm -lcmocka -o $@

# The parts of the module that need nginx's headers, but no request.
NGINX_CFLAGS = -std=gnu11 -D_GNU_SOURCE -O1 -g $(WARN) $(ASAN) $(addprefix -I$(NGINX_DIR)/src/,core event event/modules event/quic os/unix http \
    http/modules http/v2 http/v3) -I$(BUILD)/nginx -I. -Iprotocol
MODULE_UNITS := agents_test fraud_test

$(MODULE_UNITS:%=$(BUILD)/t/unit/%): $(BUILD)/t/unit/%: t/unit/%.c t/unit/unit.h $(MODULE) $(PROTOCOL_ASAN)
	@mkdir -p $(@D)
	$(CC) $(NGINX_CFLAGS) $< $(UNIT_SRCS) $(PROTOCOL_ASAN) -lcmocka -ljansson -lcrypto -lpthread -o $@

$(BUILD)/t/unit/agents_test $(BUILD)/t/unit/fraud_test: UNIT_SRCS = ngx_module/ngx_http_affiliate_agents.c

# What fuzz targets need beside protocol/: sources, and files that they include.
FUZZ_STREAM    := worker/click_counts.c worker/copy.c worker/log.c worker/pg.c
FUZZ_STREAM_IN := t/fuzz/daemon.h t/fuzz/postgres.h worker/clicks.c worker/conversions.c worker/redis.c worker/stream.c
FUZZ_SRCS_csv    := $(API_PURE_SRCS)
FUZZ_SRCS_dump   := worker/dump.c worker/config.c $(FUZZ_STREAM) worker/redis.c
FUZZ_SRCS_letter := $(API_PURE_SRCS) worker/mail/letter.c worker/mail/message.c
FUZZ_SRCS_npi    := $(API_PURE_SRCS) worker/payout/npi_message.c
FUZZ_SRCS_macros := $(API_PURE_SRCS) worker/webhook/macros.c
FUZZ_SRCS_rows   := $(FUZZ_STREAM)
FUZZ_SRCS_scgi   := $(API_PURE_SRCS)
FUZZ_SRCS_stream := $(FUZZ_STREAM)
FUZZ_SRCS_txt    := worker/site/txt.c
FUZZ_IN_config   := worker/config.c
FUZZ_IN_rows     := $(FUZZ_STREAM_IN)
FUZZ_IN_spool    := ngx_module/ngx_http_affiliate_spool.c $(MODULE)
FUZZ_IN_stream   := $(FUZZ_STREAM_IN)
FUZZ_FLAGS_spool  = $(NGINX_CFLAGS)

.SECONDEXPANSION:

$(BUILD)/t/replay/%: t/fuzz/%.c t/fuzz/replay.c t/fuzz/fuzz.h $(PROTOCOL_ASAN) $$(FUZZ_SRCS_$$*) $$(FUZZ_IN_$$*)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(ASAN) $(PKG_CFLAGS) $(FUZZ_FLAGS_$*) -It/fuzz $< t/fuzz/replay.c $(FUZZ_SRCS_$*) $(PROTOCOL_ASAN) \
	    $(PKG_LIBS) -o $@

$(BUILD)/t/fuzz/%: t/fuzz/%.c t/fuzz/fuzz.h $(PROTOCOL_SRCS) $(wildcard protocol/*.h) $$(FUZZ_SRCS_$$*) $$(FUZZ_IN_$$*)
	@mkdir -p $(@D)
	$(CLANG) -std=c11 -D_GNU_SOURCE -O1 -g $(WARN) $(PKG_CFLAGS) $(FUZZ_FLAGS_$*) -I. -Iprotocol -It/fuzz \
	    -fsanitize=fuzzer,address,undefined $< $(FUZZ_SRCS_$*) $(PROTOCOL_SRCS) $(PKG_LIBS) -o $@

$(BUILD)/t/lib/%: t/lib/%.c $(PROTOCOL_OBJS)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(PKG_CFLAGS) $< $(PROTOCOL_OBJS) $(PKG_LIBS) -lcrypto -o $@

# Preloaded into what the fault run and t/fuzz/nginx run; nothing of ours is linked to it.
FICKLE := $(BUILD)/t/lib/fickle.so

$(FICKLE): t/fault/fickle.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -shared $< -ldl -o $@

# Preloaded into affiliated by t/daemon/sites: names that lead where a test says.
NAMES := $(BUILD)/t/lib/names.so

$(NAMES): t/lib/preload/names.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -shared $< -ldl -o $@

tests: $(UNITS) $(REPLAYS) $(TOOLS) $(FICKLE) $(NAMES)

test:
	./test

bench: all $(TOOLS)
	perl -It/lib t/bench/run

# libFuzzer's favour for rare features costs small targets up to a third of their time, and covers no more of them.
TARGETS ?= $(FUZZERS) nginx redis
FUZZ     = -entropic=0 -print_final_stats=1 $(if $(RUNS),-runs=$(RUNS),-max_total_time=$(SECONDS))

fuzz: $(patsubst %,$(BUILD)/t/fuzz/%,$(filter $(FUZZERS),$(TARGETS))) asan $(TOOLS) $(FICKLE)
	@for f in $(filter $(FUZZERS),$(TARGETS)); do \
	    mkdir -p $(BUILD)/t/corpus/$$f && \
	    $(BUILD)/t/fuzz/$$f $(FUZZ) -artifact_prefix=$(BUILD)/t/fuzz/$$f- $(BUILD)/t/corpus/$$f t/fuzz/seeds/$$f \
	        > $(BUILD)/t/fuzz/$$f.log 2>&1 || { tail -40 $(BUILD)/t/fuzz/$$f.log; exit 1; }; \
	    awk -v f=$$f '/number_of_executed_units/ { printf "%-12s %12d executions\n", f, $$2 }' $(BUILD)/t/fuzz/$$f.log; \
	done
	@for f in $(filter nginx redis,$(TARGETS)); do \
	    perl -It/lib t/fuzz/$$f $(SECONDS) $(SEED) > $(BUILD)/t/fuzz/$$f.log 2>&1 || \
	        { tail -40 $(BUILD)/t/fuzz/$$f.log; exit 1; }; \
	    sed -n 's/^# '$$f': \([0-9]*\) requests.*/\1/p' $(BUILD)/t/fuzz/$$f.log | \
	        awk -v f=$$f '{ printf "%-12s %12d requests\n", f, $$1 }'; \
	done

model: all
	SEED="$(SEED)" EVENTS="$(EVENTS)" HISTORY="$(HISTORY)" perl -It/lib t/model/run $(REPLAY)

soak: all
	MINUTES="$(MINUTES)" RATE="$(RATE)" ORDERS="$(ORDERS)" SEED="$(SEED)" INTERVAL="$(INTERVAL)" perl -It/lib t/soak/run

# JOBS runs at a time, RUNS of them, SECONDS of traffic each; seeds are SEED, SEED + 1, ...
faults: all $(FICKLE) $(TOOLS)
	SEED="$(SEED)" RUNS="$(RUNS)" SECONDS="$(if $(filter file,$(origin SECONDS)),,$(SECONDS))" JOBS="$(JOBS)" perl -It/lib t/fault/run
	seed=$(or $(SEED),$$(date +%s)); for n in $$(seq $(or $(RUNS),10)); do \
	    echo "payouts: AFF_TEST_SEED=$$seed"; \
	    AFF_TEST_SEED=$$seed AFF_TEST_SECONDS=$(if $(filter file,$(origin SECONDS)),15,$(SECONDS)) prove -It/lib t/fault/payouts.t || exit 1; \
	    seed=$$((seed + 1)); \
	done

# --- house-keeping ----------------------------------------------------------------------------------------------

FORMATTED = $(wildcard protocol/*.[ch] worker/*.[ch] worker/api/*.[ch] worker/mail/*.[ch] worker/site/*.[ch] worker/webhook/*.[ch] worker/payout/*.[ch] t/unit/*.[ch] t/fuzz/*.[ch] t/lib/*.c t/lib/preload/*.c t/fault/*.c)

format:
	clang-format -i $(FORMATTED)

comma := ,
TIDY_CHECKS = -*,bugprone-*,clang-analyzer-*,-bugprone-easily-swappable-parameters,-clang-analyzer-security.insecureAPI.DeprecatedOrUnsafeBufferHandling

# $(1) sources, $(2) more checks, $(3) compiler flags. A file a run: in one run its va_list check finds faults from the
# second file on that are none.
tidy = printf '%s\n' $(1) | xargs -P 2 -I FILE clang-tidy --quiet --warnings-as-errors='*' --checks='$(TIDY_CHECKS)$(2)' FILE -- $(3) 2>&1

lint: $(BUILD)/migrations.c $(MODULE)
	clang-format --dry-run -Werror $(FORMATTED)
	cppcheck --quiet --error-exitcode=1 --inline-suppr --std=c11 --enable=warning,performance,portability \
	    --suppress=missingIncludeSystem -I. -Iprotocol -Iworker protocol worker ngx_module
	$(call tidy,$(PROTOCOL_SRCS) $(WORKER_SRCS),,-std=c11 -D_GNU_SOURCE -I. -Iprotocol -Iworker $(PKG_CFLAGS))
	@# nginx writes its sizes as products of small constants.
	$(call tidy,$(filter-out %_agents.c,$(wildcard ngx_module/*.c)),$(comma)-bugprone-implicit-widening-of-multiplication-result,$(NGINX_CFLAGS) $(PKG_CFLAGS))
	shellcheck -S warning -s sh demo test t/demo/tour t/lib/*.sh t/lib/run-one worker/*.sh conf.examples/merchant/*.sh

install: all
	install -d $(DESTDIR)$(PREFIX)/lib/nginx/modules $(DESTDIR)$(PREFIX)/sbin \
	    $(DESTDIR)$(PREFIX)/share/doc/affiliated/examples $(DESTDIR)$(PREFIX)/lib/systemd/system \
	    $(DESTDIR)$(PREFIX)/lib/sysusers.d $(DESTDIR)$(PREFIX)/lib/tmpfiles.d
	install -m 644 $(MODULE) $(DESTDIR)$(PREFIX)/lib/nginx/modules/
	install -m 755 $(DAEMON) $(DESTDIR)$(PREFIX)/sbin/
	sed 's|/usr/sbin/|$(PREFIX)/sbin/|g; s|/usr/share/|$(PREFIX)/share/|' conf.examples/affiliated.service \
	    > $(DESTDIR)$(PREFIX)/lib/systemd/system/affiliated.service
	install -m 644 conf.examples/affiliated.socket $(DESTDIR)$(PREFIX)/lib/systemd/system/
	install -m 644 conf.examples/affiliated.sysusers.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/affiliated.conf
	install -m 644 conf.examples/affiliated.tmpfiles.conf $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/affiliated.conf
	cp -R conf.examples/. $(DESTDIR)$(PREFIX)/share/doc/affiliated/examples/
	sed -i 's|^load_module modules/|load_module $(PREFIX)/lib/nginx/modules/|' \
	    $(DESTDIR)$(PREFIX)/share/doc/affiliated/examples/nginx-*.conf
	install -m 644 README.md SECURITY.md CHANGES LICENSE api/guide.md api/openapi.yaml $(DESTDIR)$(PREFIX)/share/doc/affiliated/

clean:
	rm -rf $(BUILD)
