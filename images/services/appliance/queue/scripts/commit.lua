-- Finishes a job with the result that won COMMIT on storage; only its present holder may.
-- A        {id, nonce, fence (text), adopted (the result is another attempt's); model and video_ms, which are counted}
-- ARGV[2]  the result: the text of COMMIT
-- result   "done" | "replay" (this very call was answered before) | "fenced"
return commit_result()
