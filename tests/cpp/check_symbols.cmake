# Kernels may define no symbol for the linker outside of their own namespace.
#
# Of a function that several files define, the linker keeps one copy for the whole program. If it
# were one compiled for AVX-512, every caller would crash on a processor without it. LIST names a
# file with one object file a line, NAMESPACE the namespace that they may define symbols in, NM the
# program that lists them.
file(STRINGS ${LIST} objects)
list(LENGTH objects count)
if(count EQUAL 0)
  message(FATAL_ERROR "no object files in ${LIST}")
endif()
execute_process(COMMAND ${NM} --defined-only ${objects} OUTPUT_VARIABLE symbols
                RESULT_VARIABLE result)
if(result)
  message(FATAL_ERROR "${NM} failed")
endif()

string(LENGTH ${NAMESPACE} length)
set(own "^_Z(GV|Z|TV|TI|TS)*N?K?N?(K)?3gpm3cpu${length}${NAMESPACE}")
string(REGEX MATCHALL "[0-9a-fA-F]+ [A-Zuvw] [^\n]+" lines "${symbols}")
set(good 0)
set(bad "")
foreach(line IN LISTS lines)
  string(REGEX REPLACE "^[^ ]+ . " "" symbol "${line}")
  if(symbol MATCHES "${own}")
    math(EXPR good "${good} + 1")
  elseif(NOT symbol MATCHES "^(DW\\.ref\\.|__odr_asan)") # data of the compiler's own, no code
    list(APPEND bad "  ${line}")
  endif()
endforeach()
if(good EQUAL 0)
  message(FATAL_ERROR "no symbol of gpm::cpu::${NAMESPACE} found: is this test looking at kernels?")
endif()
if(bad)
  list(REMOVE_DUPLICATES bad)
  list(JOIN bad "\n" bad)
  message(FATAL_ERROR "kernels for ${NAMESPACE} define for the whole program:\n${bad}")
endif()
message(STATUS "${good} symbols in ${count} object files, all in gpm::cpu::${NAMESPACE}")
