/* A libnvidia-ml.so.1 without a GPU, for NVIDIA's own bindings to load. Every call reads its answers anew from the text
 * file that $NVML_STUB_STATE names; tests/nvml/__init__.py writes it:
 *
 *   init 9                                  every call of nvmlInit fails with this error
 *   driver 550.54.15
 *   gpu GPU-<uuid> name=NVIDIA_A10G util=37 mem_util=12 total=24 reserved=1 used=8 temp=61 power=150000 energy=9000
 *       sm=1710 reasons=4 ecc_corrected=1 ecc_uncorrected=0
 *   xid GPU-<uuid> 79
 *
 * One line per GPU, in the order of their indices; sizes are MiB. A key that is missing is "not supported". `error=15`
 * fails every call about the GPU with that error (15, "is lost", until NVML is shut down and begun anew), `hang=1` lets it
 * not return until that is gone; `enum_error=15` fails the look for its handle. An xid is told once, to the sets that were there before its line.
 * Compiled with -DOLD it lacks what drivers of 2020 lack. Structures and numbers are those of nvml.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define MIB (1024ULL * 1024ULL)
enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TIMEOUT = 10, IS_LOST = 15 };
enum { MAX_GPUS = 64, LINE = 1024, XID_CRITICAL = 8 };

typedef struct device { char uuid[96]; int lost_in; } device;
typedef struct { unsigned long long total, free, used; } memory_v1;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned int gpu, memory; } utilization;
typedef struct { unsigned int version, sensor; int temperature; } temperature_v1;
typedef struct { char legacy[16]; unsigned int domain, bus, device, id, subsystem; char bus_id[32]; } pci_info;
typedef struct { device *device; unsigned long long type, data; unsigned int gpu_instance, compute_instance; } event_data;
typedef struct { device *devices[MAX_GPUS]; int count, next; long long size; } event_set;

static device devices[MAX_GPUS];
static int started, generation;

static void nap(long ms) { struct timespec pause = {ms / 1000, ms % 1000 * 1000000L}; nanosleep(&pause, NULL); }

/* The nth line (from 0) that begins with `word`, without it; false where there are not so many. */
static int find_line(const char *word, int nth, char *into) {
    const char *path = getenv("NVML_STUB_STATE");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[LINE];
    size_t length = strlen(word);
    int found = 0;
    if (!file) return 0;
    while (!found && fgets(line, sizeof line, file)) {
        if (strncmp(line, word, length) || line[length] != ' ') continue;
        if (nth-- > 0) continue;
        line[strcspn(line, "\n")] = 0;
        strcpy(into, line + length + 1);
        found = 1;
    }
    fclose(file);
    return found;
}

static int count_lines(const char *word) {
    char line[LINE];
    int count = 0;
    while (find_line(word, count, line)) count++;
    return count;
}

static device *device_named(const char *uuid) {
    for (int i = 0; i < MAX_GPUS; i++) {
        if (!strcmp(devices[i].uuid, uuid)) return &devices[i];
        if (!devices[i].uuid[0]) { strcpy(devices[i].uuid, uuid); return &devices[i]; }
    }
    abort();
}

/* The value of `key` on the GPU's line. */
static int lookup(device *gpu, const char *key, char *into) {
    char line[LINE], uuid[96], wanted[64];
    snprintf(wanted, sizeof wanted, " %s=", key);
    for (int i = 0; find_line("gpu", i, line); i++) {
        if (sscanf(line, "%95s", uuid) != 1 || strcmp(uuid, gpu->uuid)) continue;
        char *place = strstr(line, wanted);
        if (!place) return 0;
        sscanf(place + strlen(wanted), "%127s", into);
        return 1;
    }
    strcpy(into, "15");
    return !strcmp(key, "error"); /* it is not there any more */
}

static int trouble(device *gpu) {
    char value[128];
    if (!started) return UNINITIALIZED;
    while (lookup(gpu, "hang", value)) nap(20);
    if (gpu->lost_in == generation) return IS_LOST;
    if (!lookup(gpu, "error", value)) return OK;
    if (atoi(value) == IS_LOST) gpu->lost_in = generation;
    return atoi(value);
}

static int ask(device *gpu, const char *key, unsigned long long *answer) {
    char value[128];
    int error = trouble(gpu);
    if (error) return error;
    if (!lookup(gpu, key, value)) return NOT_SUPPORTED;
    if (value[0] == 'E') return atoi(value + 1); /* the error of this reading alone */
    *answer = strtoull(value, NULL, 10);
    return OK;
}

static int ask_int(device *gpu, const char *key, unsigned int *answer) {
    unsigned long long value = 0;
    int error = ask(gpu, key, &value);
    *answer = (unsigned int)value;
    return error;
}

int nvmlInitWithFlags(unsigned int flags) {
    char line[LINE];
    (void)flags;
    if (find_line("init", 0, line)) return atoi(line);
    if (!started++) generation++;
    return OK;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { if (!started) return UNINITIALIZED; started--; return OK; }
const char *nvmlErrorString(int error) { (void)error; return "an error of the stub"; }

int nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    char line[LINE];
    if (!find_line("driver", 0, line)) return NOT_SUPPORTED;
    snprintf(version, length, "%s", line);
    return started ? OK : UNINITIALIZED;
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
    *count = (unsigned int)count_lines("gpu");
    return started ? OK : UNINITIALIZED;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, device **gpu) {
    char value[128];
    *gpu = device_named(uuid);
    if (!started) return UNINITIALIZED;
    return lookup(*gpu, "enum_error", value) ? atoi(value) : OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, device **gpu) {
    char line[LINE], uuid[96];
    if (!find_line("gpu", (int)index, line) || sscanf(line, "%95s", uuid) != 1) return INVALID_ARGUMENT;
    return nvmlDeviceGetHandleByUUID(uuid, gpu);
}

int nvmlDeviceGetUUID(device *gpu, char *uuid, unsigned int length) {
    snprintf(uuid, length, "%s", gpu->uuid);
    return started ? OK : UNINITIALIZED;
}

int nvmlDeviceGetName(device *gpu, char *name, unsigned int length) {
    char value[128];
    int error = trouble(gpu);
    if (error) return error;
    if (!lookup(gpu, "name", value)) return NOT_SUPPORTED;
    for (char *sign = value; *sign; sign++) if (*sign == '_') *sign = ' ';
    snprintf(name, length, "%s", value);
    return OK;
}

int nvmlDeviceGetPciInfo_v3(device *gpu, pci_info *pci) {
    int error = trouble(gpu);
    memset(pci, 0, sizeof *pci);
    snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0", (unsigned)(gpu - devices) + 1);
    return error;
}

int nvmlDeviceGetMemoryInfo(device *gpu, memory_v1 *memory) {
    unsigned long long total = 0, used = 0, reserved = 0;
    int error = ask(gpu, "total", &total);
    if (error || (error = ask(gpu, "used", &used))) return error;
    if (ask(gpu, "reserved", &reserved)) reserved = 0;
    memory->total = total * MIB;
    memory->used = (used + reserved) * MIB;
    memory->free = memory->total - memory->used;
    return OK;
}

int nvmlDeviceGetUtilizationRates(device *gpu, utilization *rates) {
    int error = ask_int(gpu, "util", &rates->gpu);
    return error ? error : ask_int(gpu, "mem_util", &rates->memory);
}

int nvmlDeviceGetTemperature(device *gpu, int sensor, unsigned int *celsius) {
    (void)sensor;
    return ask_int(gpu, "temp", celsius);
}

int nvmlDeviceGetPowerUsage(device *gpu, unsigned int *milliwatts) { return ask_int(gpu, "power", milliwatts); }
int nvmlDeviceGetTotalEnergyConsumption(device *gpu, unsigned long long *mj) { return ask(gpu, "energy", mj); }
int nvmlDeviceGetClockInfo(device *gpu, int type, unsigned int *mhz) { (void)type; return ask_int(gpu, "sm", mhz); }
int nvmlDeviceGetCurrentClocksThrottleReasons(device *gpu, unsigned long long *mask) { return ask(gpu, "reasons", mask); }

int nvmlDeviceGetTotalEccErrors(device *gpu, int type, int counter, unsigned long long *count) {
    if (counter != 1) return INVALID_ARGUMENT; /* aggregate */
    return ask(gpu, type ? "ecc_uncorrected" : "ecc_corrected", count);
}

#ifndef OLD
int nvmlDeviceGetMemoryInfo_v2(device *gpu, memory_v2 *memory) {
    memory_v1 old;
    unsigned long long reserved = 0;
    int error = nvmlDeviceGetMemoryInfo(gpu, &old);
    if (error) return error;
    if (memory->version != (sizeof *memory | 2u << 24)) return 25;
    if (ask(gpu, "reserved", &reserved)) reserved = 0;
    memory->total = old.total;
    memory->reserved = reserved * MIB;
    memory->used = old.used - memory->reserved;
    memory->free = old.free;
    return OK;
}

int nvmlDeviceGetTemperatureV(device *gpu, temperature_v1 *answer) {
    unsigned int celsius = 0;
    int error = ask_int(gpu, "temp", &celsius);
    answer->temperature = (int)celsius;
    return error;
}

int nvmlDeviceGetCurrentClocksEventReasons(device *gpu, unsigned long long *mask) { return ask(gpu, "reasons", mask); }

int nvmlEventSetCreate(event_set **set) {
    if (!started) return UNINITIALIZED;
    *set = calloc(1, sizeof **set);
    (*set)->next = count_lines("xid");
    return OK;
}
int nvmlEventSetFree(event_set *set) { free(set); return OK; }

int nvmlDeviceRegisterEvents(device *gpu, unsigned long long types, event_set *set) {
    int error = trouble(gpu);
    if (error) return error;
    if (!(types & XID_CRITICAL)) return INVALID_ARGUMENT;
    if (set->count < MAX_GPUS) set->devices[set->count++] = gpu;
    return OK;
}

/* Lines are only ever added. */
static int has_changed(event_set *set) {
    struct stat file;
    const char *path = getenv("NVML_STUB_STATE");
    if (!path || stat(path, &file)) return 0;
    int changed = set->size != (long long)file.st_size;
    set->size = file.st_size;
    return changed;
}

int nvmlEventSetWait_v2(event_set *set, event_data *event, unsigned int timeout_ms) {
    char line[LINE], uuid[96];
    unsigned long long xid;
    for (unsigned int waited = 0; started; waited += 50) {
        int look = has_changed(set); /* the real one waits for an interrupt: looking must not be what costs */
        while (look && find_line("xid", set->next, line)) {
            set->next++;
            if (sscanf(line, "%95s %llu", uuid, &xid) != 2) continue;
            for (int i = 0; i < set->count; i++) {
                if (strcmp(set->devices[i]->uuid, uuid)) continue;
                set->size = -1; /* there may be more */
                *event = (event_data){set->devices[i], XID_CRITICAL, xid, 0xFFFFFFFF, 0xFFFFFFFF};
                return OK;
            }
        }
        if (waited >= timeout_ms) return TIMEOUT;
        nap(50);
    }
    return UNINITIALIZED;
}
#endif
