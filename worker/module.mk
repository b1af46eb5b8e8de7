# Of the role api, what needs neither PostgreSQL nor a socket.
API_PURE_SRCS := $(addprefix worker/api/, \
	buffer.c csv.c password.c rate.c request.c router.c routes.c scgi.c seal.c text.c totp.c) \
	worker/token.c

# The same of the roles mail, sites and webhooks.
MAIL_PURE_SRCS := worker/mail/letter.c worker/mail/message.c worker/site/address.c worker/site/txt.c \
	worker/webhook/macros.c worker/webhook/sign.c

# The same of the role payouts.
PAYOUT_PURE_SRCS := $(addprefix worker/payout/, npi_message.c sign.c)

# Sources of affiliated, beside protocol/ and build/migrations.c (worker/migrations.sh sql/*.sql).

WORKER_SRCS = \
	worker/check.c \
	worker/click_counts.c \
	worker/clicks.c \
	worker/config.c \
	worker/conversions.c \
	worker/copy.c \
	worker/holds.c \
	worker/log.c \
	worker/main.c \
	worker/migrate.c \
	worker/notify.c \
	worker/partitions.c \
	worker/payouts.c \
	worker/pg.c \
	worker/projection.c \
	worker/redis.c \
	worker/role.c \
	worker/run.c \
	worker/status.c \
	worker/stream.c \
	$(addprefix worker/api/, answer.c api.c auth.c call.c listener.c native.c sandbox.c upload.c) \
	$(API_PURE_SRCS) \
	$(addprefix worker/mail/, mail.c maildir.c settings.c smtp.c) \
	$(addprefix worker/site/, dns.c https.c site.c) \
	$(addprefix worker/webhook/, call.c webhook.c) \
	$(MAIL_PURE_SRCS) \
	$(addprefix worker/payout/, npi.c npi_settings.c) \
	$(PAYOUT_PURE_SRCS) \
	$(sort $(wildcard worker/command_*.c worker/dump.c))
