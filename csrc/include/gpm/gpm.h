// The whole public interface of the library.
#pragma once

#include "gpm/build_info.h"
#include "gpm/cross_probability_matrix.h"
#include "gpm/cross_score_matrix.h"
#include "gpm/linear_logprob.h"
#include "gpm/memory.h"
#include "gpm/normalize.h"
#include "gpm/preference_embedding.h"
#include "gpm/preference_loss.h"
#include "gpm/probability_matrix.h"
#include "gpm/score.h"
#include "gpm/score_matrix.h"
#include "gpm/stream.h"
#include "gpm/types.h"
