"""`python -P -m modelscope_app.jobs.service`."""

from modelscope_app.jobs.service.lifetime import main

main()
