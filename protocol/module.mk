# The objects that the nginx module, the daemon and the tests share. Each compiles by itself, with
# nothing but this folder's headers, and links with -lcrypto; event.c, which reads JSON, with jansson.

PROTOCOL_DIR := $(patsubst %/,%,$(dir $(lastword $(MAKEFILE_LIST))))

PROTOCOL_SRCS := $(addprefix $(PROTOCOL_DIR)/, \
	amount.c api_key.c batch.c chars.c click.c click_id.c conversion.c crc32c.c event.c explain.c \
	fault.c frame.c keyring.c projection.c refusal.c segment.c signature.c siphash.c url.c)

PROTOCOL_HDRS := $(addprefix $(PROTOCOL_DIR)/, \
	amount.h api_key.h batch.h bytes.h chars.h click.h click_id.h conversion.h crc32c.h event.h explain.h \
	fault.h frame.h keyring.h projection.h refusal.h segment.h signature.h siphash.h slice.h url.h)

PROTOCOL_LIBS := -ljansson -lcrypto
